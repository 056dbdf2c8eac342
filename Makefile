# make demo     one base, two clones, two virtual machines at once, an update, a shrink; installs what is missing first
# make test     everything that must pass; installs what is missing first
# make build    the release binary
# make soak     the same for hours: power cuts, kills, threads, fuzzing, mutants; see docs/testing.md
# make bench    the benchmarks of docs/benchmarks.md; take a quiet machine
# make install  binary, completions and manual pages below PREFIX (default /usr/local)
# make clean    what was built, and the demo's store

SHELL := /bin/bash
CARGO ?= cargo
PREFIX ?= /usr/local
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY := $(TARGET)/release/cowshed
# Debian keeps mke2fs, e2fsck and sgdisk where plain users do not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.NOTPARALLEL:
.PHONY: build setup guest merge-case lint test soak demo bench install clean

build:
	$(CARGO) build --release --locked

setup:
	@tests/tools/setup.sh

# The bootable Debian image for the tests and the demo; built once, then found in the cache.
guest: setup
	@tests/tools/guest-image.sh

# The disks of a real base update: a Debian, its upgrade, and a clone; built once, then found in the cache.
merge-case: setup
	@tests/tools/merge-case.sh

lint:
	@$(CARGO) fmt --version >/dev/null && $(CARGO) clippy --version >/dev/null || rustup component add rustfmt clippy
	$(CARGO) fmt --all --check
	python3 tests/bench/charts.py docs/benchmarks.md docs/charts --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Many tests wait for disks and guests: more of them at once than there are processors.
test: setup guest merge-case lint
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; $(CARGO) nextest run --workspace --locked --no-fail-fast --test-threads "$$(($$(nproc) * 3 / 2))"; \
	else \
		set -x; $(CARGO) test --workspace --locked --no-fail-fast --all-targets; \
	fi
	CARGO=$(CARGO) tests/tools/uring.sh
	$(CARGO) test --workspace --locked --doc
	COWSHED_SCHEDULES=$${COWSHED_SCHEDULES:-1500} tests/tools/models.sh
	tests/tools/tsan.sh

soak: setup guest
	tests/tools/soak.sh

demo: setup build guest
	@COWSHED=$(abspath $(BINARY)) tests/tools/demo.sh $(abspath $(TARGET))/demo

bench: setup merge-case
	$(CARGO) build --release --locked --bin cowshed --example engine --example vhost_load
	$(CARGO) build --release --locked -p fuse-mount --example bare
	COWSHED=$(abspath $(BINARY)) tests/bench/clones.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/jobs.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/rebase.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/shrink.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/engine.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/view.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/vhost.sh
	COWSHED=$(abspath $(BINARY)) tests/bench/nbd.sh
	python3 tests/bench/charts.py docs/benchmarks.md docs/charts

install:
	@test -x $(BINARY) || { echo "there is no $(BINARY) yet: run make build first" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/cowshed
	install -d $(DESTDIR)$(PREFIX)/share/{bash-completion/completions,zsh/site-functions,fish/vendor_completions.d,man/man1}
	$(BINARY) completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/cowshed
	$(BINARY) completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_cowshed
	$(BINARY) completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/cowshed.fish
	$(BINARY) man $(DESTDIR)$(PREFIX)/share/man/man1

clean:
	@COWSHED=$(abspath $(BINARY)) tests/tools/demo.sh --clean $(abspath $(TARGET))/demo
	$(CARGO) clean
