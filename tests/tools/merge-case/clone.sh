# shellcheck shell=bash disable=SC2164
# What the user of the clone does: other packages, an account, many files of every kind, settings, deletions.

apt-get -q update
apt-get -q install acl attr libcap2-bin sqlite3 tmux htop less
# One package at the version that the base has too, one on hold at its old one, one removed.
apt-get -q install --only-upgrade rsync
apt-mark hold rsyslog
apt-get -q purge libarchive-tools

echo "== packages of its own: one newer than any, one older than the update of the base"
mkdir /tmp/own
cd /tmp/own
for package in xz-utils jq; do
    apt-get -q download "$package=$(dpkg-query -W -f '${Version}' "$package")"
    dpkg-deb -R "$package"_*.deb "$package"
    printf 'local build\n' >"$package/usr/share/doc/$package/README.local"
done
sed -i 's/^Version: /&9:/' xz-utils/DEBIAN/control
sed -i 's/^Version: .*/&~local1/' jq/DEBIAN/control
for package in xz-utils jq; do
    dpkg-deb --root-owner-group -b "$package" "$package-local.deb"
    dpkg -i "$package-local.deb"
done
cd /

echo "== settings"
sed -i 's/^#Port 22$/Port 2222/; s/^X11Forwarding yes/X11Forwarding no/' /etc/ssh/sshd_config
sed -i 's/^worker_processes .*/worker_processes 2;/' /etc/nginx/nginx.conf
sed -i 's/^theta = 8$/theta = 80/' /etc/golden.conf
update-alternatives --set editor /usr/bin/vim.tiny
printf 'web\n' >/etc/hostname
printf '0123456789abcdef0123456789abcdef\n' >/etc/machine-id
rm /etc/ssh/ssh_host_*
ssh-keygen -q -A
printf 'notes of the clone\n' >>/data/notes
printf 'an issue of the clone\n' >>/etc/issue.net
rm /etc/motd
printf '17 3 * * * root /usr/local/bin/golden\n' >/etc/cron.d/clone
echo '@daily /usr/local/bin/golden' | crontab -

echo "== accounts"
groupadd --gid 1200 ops
useradd --uid 1001 --user-group --create-home --shell /bin/bash alice
usermod --append --groups adm,ops alice

echo "== files"
mkdir -p /home/alice/{documents,mail} /srv/{www,archive,special}
perl -e 'srand 7; for my $n (1 .. 1000) {
    my $folder = $n % 2 ? "/home/alice/documents" : $n % 4 ? "/home/alice/mail" : "/srv/www";
    open my $file, ">", sprintf("%s/file-%04d", $folder, $n) or die;
    print $file pack("N*", map { int rand 4294967296 } 1 .. int rand 6000);
}'
chown -R alice:alice /home/alice
head -c 20000000 /dev/urandom >/srv/www/video.bin
printf 'in two folders\n' >/srv/special/link-1
ln /srv/special/link-1 /srv/special/link-2
ln /srv/special/link-1 /srv/www/link-3
printf 'head' >/srv/special/sparse
printf 'middle' | dd of=/srv/special/sparse bs=1 seek=20000000 conv=notrunc status=none
truncate -s 64M /srv/special/sparse
printf 'with attributes\n' >/srv/special/xattr
setfattr -n user.short -v value /srv/special/xattr
setfattr -n user.long -v "$(head -c 2000 /dev/zero | tr '\0' x)" /srv/special/xattr
setfattr -n trusted.secret -v 0x0001ff /srv/special/xattr
mkdir /srv/special/acl
setfacl -m u:alice:rwx,g:ops:rx /srv/special/acl
setfacl -d -m u:alice:rw /srv/special/acl
printf 'inherits\n' >/srv/special/acl/file
mknod /srv/special/null c 1 3
mknod /srv/special/loop b 7 300
mkfifo -m 640 /srv/special/fifo
perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => "/srv/special/socket", Listen => 1) or die'
cp /usr/bin/true /usr/local/bin/capable
setcap cap_net_raw,cap_net_admin+ep /usr/local/bin/capable
printf 'must stay\n' >/srv/special/locked
chattr +i /srv/special/locked
printf 'only grows\n' >/srv/special/journal
chattr +a /srv/special/journal
ln -s ../www/video.bin /srv/special/symlink
ln -s "$(printf 'a/%.0s' $(seq 1 100))end" /srv/special/long-symlink
touch -d '2001-02-03 04:05:06.123456789' /srv/special/xattr
chown alice:ops /usr/local/bin/golden
ln /srv/shared/links-a /srv/shared/links-c
printf 'a change in the middle of a larger file\n' | dd of=/srv/data/big.txt bs=1 seek=50000 conv=notrunc status=none

echo "== moves and deletions"
mv /srv/site /srv/www/site-2
mv /srv/data/list.txt /srv/archive/list-moved.txt
ln -sfn /srv/www/site-2 /srv/current
rm -r /srv/old
rm -r /usr/share/doc/{bash,tar,openssl,perl}
