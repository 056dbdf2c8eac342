# shellcheck shell=bash disable=SC2164
# What the old base has beside its packages. Both sides start from these files.

mkdir -p /srv/{data,old,site/img,shared} /data /usr/local/share/golden
seq 1 400 | sed 's/^/entry number /' >/srv/data/list.txt
seq 1 3000 | sed 's/^/a line of the big list, number /' >/srv/data/big.txt
for number in $(seq 1 40); do
    printf 'page %s\n' "$number" >"/srv/site/page-$number.html"
    head -c $((number * 500)) /dev/zero | tr '\0' "$(printf '\\%03o' $((number + 64)))" >"/srv/site/img/$number.bin"
done
printf 'kept\n' >/srv/old/first
printf 'kept too\n' >/srv/old/second
printf 'one\ntwo\nthree\n' >/srv/shared/links-a
ln /srv/shared/links-a /srv/shared/links-b
printf 'shared notes\n' >/data/notes
printf 'welcome\n' >/etc/motd
printf 'local issue\n' >/etc/issue.net
printf 'alpha = 1\nbeta = 2\ngamma = 3\ndelta = 4\nepsilon = 5\nzeta = 6\neta = 7\ntheta = 8\n' >/etc/golden.conf
printf '#!/bin/sh\necho golden\n' >/usr/local/bin/golden
chmod 755 /usr/local/bin/golden
printf 'v1\n' >/usr/local/share/golden/version
ln -s /srv/site /srv/current
