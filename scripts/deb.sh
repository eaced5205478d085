#!/bin/sh
# Builds the Debian packages into target/deb from the release binaries; see deploy/debian/README.md.
# PROFILE_DIR names another folder of binaries, to package what is built already.
set -eu
cd "$(dirname "$0")/.."

for tool in dpkg-deb readelf strip; do
    command -v "$tool" >/dev/null || { echo "deb: $tool is missing: install dpkg and binutils" >&2; exit 1; }
done
binaries=${PROFILE_DIR:-target/release}
[ -n "${PROFILE_DIR:-}" ] || cargo build --release --locked --bins

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
architecture=$(dpkg --print-architecture)
out=target/deb
rm -rf "$out"
mkdir -p "$out"

# start PACKAGE: an empty package
start() {
    package=$1
    root=$out/$package
    mkdir -p "$root/DEBIAN" "$root/usr/share/doc/$package/examples"
    install -m 644 LICENSE "$root/usr/share/doc/$package/copyright"
    install -m 644 CHANGELOG.md "$root/usr/share/doc/$package/CHANGELOG.md"
}

# program NAME: into /usr/bin, without its debug information
program() {
    mkdir -p "$root/usr/bin"
    strip -o "$root/usr/bin/$1" "$binaries/$1"
    chmod 755 "$root/usr/bin/$1"
    libc=$(readelf -V "$binaries/$1" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1 | sed 's/GLIBC_//')
}

# manual SECTION FILE...: its manual pages
manual() {
    section=$1
    shift
    mkdir -p "$root/usr/share/man/man$section"
    for page in "$@"; do
        gzip -9n <"$page" >"$root/usr/share/man/man$section/$(basename "$page").gz"
    done
}

# completion FOLDER NAME SHELL: what a shell completes
completion() {
    mkdir -p "$root/usr/share/$1"
    "$binaries/gemel" completions "$3" >"$root/usr/share/$1/$2"
    chmod 644 "$root/usr/share/$1/$2"
}

# service UNIT CONFIGURATION ON_UPGRADE: its unit, which waits for its configuration
service() {
    mkdir -p "$root/usr/lib/systemd/system"
    sed "s|^\[Service\]|ConditionPathExists=/etc/gemel/$2\n\n&|" "deploy/$1" >"$root/usr/lib/systemd/system/$1"
    chmod 644 "$root/usr/lib/systemd/system/$1"
    install -m 644 "deploy/$2" "$root/usr/share/doc/$package/examples/$2"
    for script in postinst prerm postrm; do
        sed -e "s/@UNIT@/$1/g" -e "s/@ON_UPGRADE@/$3/g" "deploy/debian/$script" >"$root/DEBIAN/$script"
        chmod 755 "$root/DEBIAN/$script"
    done
}

# finish DEPENDENCIES SUMMARY DESCRIPTION
finish() {
    cat >"$root/DEBIAN/control" <<END
Package: $package
Version: $version
Architecture: $architecture
Maintainer: gemel maintainers <maintainers@gemel.invalid>
Section: admin
Priority: optional
Depends: libc6 (>= $libc), libgcc-s1$1
Suggests: smartmontools
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f 1)
Description: $2
 $3
END
    dpkg-deb --root-owner-group -Zxz --build "$root" "$out/${package}_${version}_$architecture.deb" >/dev/null
    rm -rf "$root"
}

with_tools=", init-system-helpers, gemel-tools (= $version)"

start gemel-tools
program gemel
"$binaries/gemel" man "$out/man"
manual 1 "$out"/man/*.1
rm -rf "$out/man"
completion bash-completion/completions gemel bash
completion zsh/vendor-completions _gemel zsh
completion fish/vendor_completions.d gemel.fish fish
finish "" "command line of the gemel storage array" \
    "Everything that an administrator of a gemel cluster does, and a demo of one."

start gemel
program gemeld
"$binaries/gemeld" man >"$out/gemeld.8"
manual 8 "$out/gemeld.8"
rm "$out/gemeld.8"
service gemeld.service gemeld.toml leave
finish "$with_tools" "storage node of a gemel array" \
    "Two such nodes and a witness are one iSCSI array that survives the loss of either room."

start gemel-witness
program gemel-witness
"$binaries/gemel-witness" --man >"$out/gemel-witness.8"
manual 8 "$out/gemel-witness.8"
rm "$out/gemel-witness.8"
service gemel-witness.service witness.toml try-restart
finish "$with_tools" "third vote of a gemel array" \
    "Runs in a third room, on the smallest machine, and holds no data."

ls -l "$out"
