#!/bin/sh
# Installs the Debian packages that a make target needs and that are missing, and says so first.
# Usage: prerequisites.sh demo|test|bench
#
# Installed packages are never replaced by other versions: where the installed qemu-utils has no
# matching iSCSI module in the distribution, both are unpacked below target/tools/ and used from there.
set -eu
cd "$(dirname "$0")/.."

missing=""
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}

# Building takes a C compiler with its headers, for the linker and for two crates.
need cc gcc
[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
if [ "$1" != demo ]; then
    # The shell's own kill is not what the tests start.
    [ -x /bin/kill ] || missing="$missing procps"
    need iscsi-test-cu libiscsi-bin
    need qemu-img qemu-utils
    # Namespaces whose links are cut.
    need ip iproute2
    # Has a system call of a process fail.
    need strace strace
    # What reads the files in deploy/hosts.
    need multipath multipath-tools
    # A browser for the console.
    need chromium chromium
    need chromedriver chromium-driver
    # A UPS that is told what to say: the programs themselves, no service.
    [ -x /lib/nut/upsd ] && [ -x /lib/nut/dummy-ups ] || missing="$missing nut-server"
    # A mail server for alerts.
    /usr/bin/python3 -c 'import aiosmtpd' 2>/dev/null || missing="$missing python3-aiosmtpd"
fi
[ "$1" != bench ] || need tgtd tgt

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        echo "prerequisites: missing packages:$missing - install them as root, then run this again" >&2
        exit 1
    fi
}

update_once() {
    [ -n "${updated:-}" ] || as_root apt-get update -qq
    updated=yes
}

install() { # install PACKAGE...
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if [ -n "$missing" ]; then
    echo "prerequisites: installing Debian packages:$missing"
    update_once
    # tgt's own service is not wanted: the benchmark starts its own tgtd.
    # shellcheck disable=SC2086 # a list of packages
    install $missing
fi

[ "$1" != demo ] || exit 0

# Prometheus' checker alone: the package's service is not wanted.
if [ "$1" = test ] && ! command -v promtool >/dev/null 2>&1 && [ ! -x target/tools/prometheus/usr/bin/promtool ]; then
    echo "prerequisites: unpacking Debian's prometheus into target/tools/prometheus"
    update_once
    rm -rf target/tools/prometheus
    mkdir -p target/tools/prometheus
    (
        cd target/tools/prometheus
        apt-get download -qq prometheus 2>/dev/null
        dpkg-deb -x prometheus_*.deb .
        rm -f prometheus_*.deb usr/bin/prometheus
    )
fi

# A directory to sign in by: the program alone, no service, with the libraries that are nowhere else here.
if [ "$1" = test ] && [ ! -x /usr/sbin/slapd ] && [ ! -x target/tools/slapd/usr/sbin/slapd ]; then
    echo "prerequisites: unpacking Debian's slapd into target/tools/slapd"
    update_once
    rm -rf target/tools/slapd
    mkdir -p target/tools/slapd
    (
        cd target/tools/slapd
        perl=$(apt-cache depends slapd | sed -n 's/ *Depends: \(libperl[0-9.a-z]*\)$/\1/p')
        ldap=$(apt-cache depends slapd | sed -n 's/ *Depends: \(libldap[-0-9.a-z]*\)$/\1/p')
        # shellcheck disable=SC2086 # lists of packages
        apt-get download -qq slapd $ldap libodbc2 libltdl7 libwrap0 libsasl2-2 libargon2-1 $perl 2>/dev/null
        for package in ./*.deb; do dpkg-deb -x "$package" .; done
        rm -f ./*.deb
    )
fi

# Whether this qemu-img has its iSCSI driver: without it, it does not know the protocol.
speaks_iscsi() { # speaks_iscsi QEMU_IMG
    command -v "$1" >/dev/null 2>&1 &&
        ! "$1" info iscsi://127.0.0.1:1/iqn.2026-11.io.gemel:none/0 2>&1 | grep -q -e 'Unknown protocol' -e 'Unable to load'
}

tools=target/tools/qemu
modules=$(echo "$tools"/usr/lib/*/qemu)
if ! speaks_iscsi qemu-img && ! QEMU_MODULE_DIR="$modules" speaks_iscsi "$tools/usr/bin/qemu-img"; then
    update_once
    if apt-get install -s --no-install-recommends qemu-block-extra 2>/dev/null | grep -q '^Inst qemu-system'; then
        echo "prerequisites: unpacking Debian's qemu-utils and qemu-block-extra into $tools"
        rm -rf "$tools"
        mkdir -p "$tools"
        (
            cd "$tools"
            version=$(apt-cache policy qemu-block-extra | sed -n 's/ *Candidate: //p')
            apt-get download -qq "qemu-utils=$version" "qemu-block-extra=$version" 2>/dev/null
            for package in ./*.deb; do dpkg-deb -x "$package" .; done
            rm -f ./*.deb
        )
    else
        echo "prerequisites: installing Debian packages: qemu-block-extra"
        install qemu-block-extra
    fi
fi
