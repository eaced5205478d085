#!/bin/sh
# Starts compose.yaml's three containers, makes a cluster of them and a volume that every host may use.
# Usage: try.sh            COMPOSE="podman compose" for podman, COMPOSE=docker-compose for Debian's.
# With arguments compose does what they say: `try.sh exec a gemel status`; `try.sh down --volumes` removes all of it.
set -eu
cd "$(dirname "$0")"
export COMPOSE_PROJECT_NAME=gemel
compose=${COMPOSE:-docker compose}
[ $# = 0 ] || exec $compose "$@"
on() { # on MACHINE COMMAND...
    machine=$1
    shift
    $compose exec -T "$machine" "$@"
}

$compose up --build --detach
disks=""
for number in 1 2 3 4; do
    for machine in a b; do on "$machine" truncate --size 4G "/disks/$number.img"; done
    disks="$disks --disk /disks/$number.img"
done
# shellcheck disable=SC2086 # a list of options
made=$(on a gemel cluster init try --name a --address 172.30.0.11 --peer b=172.30.0.12 --witness w=172.30.0.13 $disks)
echo "$made"
token() { # token WHOM
    echo "$made" | sed -n "/^Then on [a-z]* $1,/{n;s/.*\(gemel-join-[^ ]*\).*/\1/p;}"
}
# The first node has to be there before others can join.
until on a gemel status >/dev/null || [ $? -lt 64 ]; do sleep 1; done
# shellcheck disable=SC2086
on b gemel cluster join "$(token b)" $disks
on w gemel cluster join "$(token w)" --witness
until on a gemel volume create try --size 1G; do sleep 1; done
on a gemel access allow try '*'
on a gemel status || true
echo "Log in to it: iscsiadm -m discovery -t sendtargets -p 172.30.0.11, and -p 172.30.0.12"
