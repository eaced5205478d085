#!/bin/sh
# Installs the packages of `make deb` in a throw-away copy of this system (an overlay in a mount namespace of its own, so as
# root), and checks what they promise: deploy/debian/README.md.
set -eu
cd "$(dirname "$0")/.."

if [ "${1:-}" != inside ]; then
    ls target/deb/*.deb >/dev/null
    if ! unshare -m true 2>/dev/null; then
        echo "check-deb: skipped: mount namespaces need root"
        exit 0
    fi
    exec unshare -m "$0" inside
fi

place=$PWD/target/deb-check
mkdir -p "$place"
mount -t tmpfs tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
mount -t proc proc "$place/root/proc"
mkdir -p "$place/root/opt/deb"
cp target/deb/*.deb "$place/root/opt/deb/"
exec chroot "$place/root" sh -eu <<'END'
fail() { echo "check-deb: $*" >&2; exit 1; }
is_enabled() { [ -L "/etc/systemd/system/multi-user.target.wants/$1" ]; }
units=/usr/lib/systemd/system

dpkg -i /opt/deb/*.deb >/dev/null
for program in gemel gemeld gemel-witness; do "$program" --version >/dev/null || fail "$program does not run"; done
for unit in gemeld.service gemel-witness.service; do
    is_enabled "$unit" || fail "$unit is not enabled"
    grep -q ConditionPathExists=/etc/gemel/ "$units/$unit" || fail "$unit does not wait for its configuration"
    ! command -v systemd-analyze >/dev/null || {
        systemd-analyze verify "$units/$unit" || fail "$unit is wrong"
        # In tenths, from 0 (nothing allowed) to 100.
        systemd-analyze security --offline=true --threshold=40 "$units/$unit" | tail -n 1
    }
done

# Manual pages and completions come with them, unless this system leaves documentation out.
for file in man/man1/gemel-volume-create.1.gz man/man8/gemeld.8.gz bash-completion/completions/gemel; do
    dpkg -L gemel gemel-tools | grep -q "^/usr/share/$file$" || fail "there is no $file"
done

# The examples are configurations; a wrong one is refused with its line.
said=$(gemeld --config /usr/share/doc/gemel/examples/gemeld.toml 2>&1) && fail "a node without disks starts"
echo "$said" | grep -q 'gemeld format' || fail "the example of gemeld.toml is not read: $said"
echo 'nonsense = 1' >/tmp/wrong.toml
said=$(gemeld --config /tmp/wrong.toml 2>&1) && fail "nonsense is no configuration"
echo "$said" | grep -q 'line 1' || fail "the line is not named: $said"

# What an administrator has made stays.
echo mine >/etc/gemel/gemeld.toml
rm /etc/systemd/system/multi-user.target.wants/gemeld.service
dpkg -i /opt/deb/*.deb >/dev/null
! is_enabled gemeld.service || fail "an upgrade enables what was disabled"
dpkg -r gemel gemel-witness >/dev/null
dpkg -P gemel gemel-witness gemel-tools >/dev/null
[ "$(cat /etc/gemel/gemeld.toml)" = mine ] || fail "the configuration is gone"
! ls /etc/systemd/system/*gemel* >/dev/null 2>&1 || fail "units are left behind"
! is_enabled gemel-witness.service || fail "a removed unit is still enabled"
echo "check-deb: the packages install, upgrade and leave as they should"
END
