# shellcheck shell=bash disable=SC2164
# What the maintainers of the base do: upgrades, packages added and purged, settings, an account.

apt-get -q update
apt-get -q upgrade
apt-get -q install less tree bc lsof
apt-get -q purge nano libutempter0
echo "== settings"
sed -i 's/^#PermitRootLogin .*/PermitRootLogin no/' /etc/ssh/sshd_config
sed -i 's/^worker_processes .*/worker_processes 4;/' /etc/nginx/nginx.conf
sed -i 's/^epsilon = 5$/epsilon = 50/; s/^alpha = 1$/alpha = 10/' /etc/golden.conf
printf 'kernel.panic = 10\n' >/etc/sysctl.d/50-golden.conf
printf 'golden-2\n' >/etc/hostname
printf 'notes of the base\n' >>/data/notes
printf 'welcome to the second version\n' >/etc/motd
rm /etc/issue.net
echo "== accounts"
groupadd --gid 1100 deploy
# Its subordinate ids are not those that the next account on any machine gets.
useradd --key SUB_UID_MIN=500000 --key SUB_GID_MIN=500000 --uid 1100 --gid 1100 --create-home --shell /bin/bash deploy
usermod --append --groups adm deploy
echo "== files"
printf 'v2\n' >/usr/local/share/golden/version
# In place: the inode stays, wherever the clone has moved the file.
printf 'entry of the new base\n' >>/srv/data/list.txt
chmod 700 /usr/local/bin/golden
printf 'four\n' >>/srv/shared/links-a
printf 'new in an old folder\n' >/srv/old/third
mkdir /opt/golden
head -c 300000 /usr/bin/perl >/opt/golden/blob
