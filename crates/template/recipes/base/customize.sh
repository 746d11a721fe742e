#!/bin/sh
# Turns a freshly installed Debian into a Torpor root file system. Runs on the host as root, with the root of the
# new tree as its only argument, after the last package was configured.
set -eu
root=$1

# === users ===

chroot "$root" useradd --create-home --uid 1000 --user-group --groups sudo --shell /bin/bash user
chroot "$root" passwd --lock root >/dev/null
printf 'user ALL=(ALL:ALL) NOPASSWD: ALL\n' >"$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"

# The user may install into /usr/local (pip, npm -g, make install) without sudo.
chmod -R a+rwX "$root/usr/local"
install -d -m 0777 -o 1000 -g 1000 "$root/code"

# === language, names, packages ===

printf 'en_US.UTF-8 UTF-8\n' >"$root/etc/locale.gen"
chroot "$root" locale-gen >/dev/null
printf 'LANG=C.UTF-8\n' >"$root/etc/default/locale"

printf 'torpor\n' >"$root/etc/hostname"
cat >"$root/etc/hosts" <<'EOF'
127.0.0.1 localhost torpor
::1 localhost ip6-localhost ip6-loopback
EOF
# The gateway of every guest network; the host answers name queries there.
rm -f "$root/etc/resolv.conf"
printf 'nameserver 10.11.0.1\n' >"$root/etc/resolv.conf"
# The agent mounts the root file system; no other mount is wanted at start.
printf '# mounted by the agent\n' >"$root/etc/fstab"

rm -f "$root/etc/apt/sources.list"
cat >"$root/etc/apt/sources.list.d/debian.sources" <<'EOF'
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF
if [ -e "$root/usr/share/keyrings/debian-archive-keyring.pgp" ]; then
    sed -i 's/debian-archive-keyring\.gpg/debian-archive-keyring.pgp/' "$root/etc/apt/sources.list.d/debian.sources"
fi
# The proxy the host used for this build means nothing inside a sandbox.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
cat >"$root/etc/apt/apt.conf.d/90torpor" <<'EOF'
// A sandbox is for one job: no recommendations, no translations, no questions.
APT::Install-Recommends "false";
Acquire::Languages "none";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
EOF
# A sandbox is one environment already: pip may install into it.
printf '[global]\nbreak-system-packages = true\nroot-user-action = ignore\ndisable-pip-version-check = true\n' \
    >"$root/etc/pip.conf"

# === what a machine does not need ===

# The machine boots the kernel the host took from this tree, with an initramfs of Torpor's own.
rm -f "$root"/boot/initrd.img-* "$root"/initrd.img "$root"/initrd.img.old
chroot "$root" apt-mark hold linux-image-cloud-amd64 >/dev/null
# No service starts by itself when a package is installed: the agent is PID 1.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
# Filled in for each sandbox by the agent.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/debconf/*-old "$root"/var/log/*
# Manual pages are left out, but some packages link into their directories.
for section in 1 2 3 4 5 6 7 8; do install -d "$root/usr/share/man/man$section"; done
install -d -m 1777 "$root/tmp" "$root/var/tmp"
