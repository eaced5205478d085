#!/bin/sh
# Random runs of the simulator's worlds: WORLD=store and WORLD=cluster take one, SEEDS=n says how many, SEED=n replays
# one, FIRST=n says with which to begin. The last line is `sim: N seeds, M failed`: each seed is run in every world.
set -u
cd "$(dirname "$0")/.."

[ -n "${SEED:-}" ] && export SEED && unset SEEDS
seeds=${SEEDS:-1}
logs=target/tmp
mkdir -p "$logs"
status=0
failed=0
for world in ${WORLD:-store cluster}; do
    log="$logs/sim-$world.log"
    case $world in
        store) set -- --test store_sim random ;;
        cluster) set -- --lib random_lives_of_the_cluster ;;
        *) echo "there is no world called $world" >&2 && exit 2 ;;
    esac
    { cargo test --locked "$@" -- --nocapture 2>&1 || echo "the run failed"; } | tee "$log"
    grep -q '^the run failed$' "$log" && status=1
    count=$(sed -n 's/^.*: [0-9]* seeds, \([0-9]*\) failed$/\1/p' "$log" | tail -1)
    failed=$((failed + ${count:-1}))
done
echo "sim: $seeds seeds, $failed failed"
exit $status
