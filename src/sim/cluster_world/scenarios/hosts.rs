//! Hosts that preempt each other and come again.

use super::*;

#[test]
fn scenario_26_a_preemption_outlives_its_primary() {
    scenario(|cluster| async move {
        let (old, new) = (host(&cluster, 0), host(&cluster, 1));
        for host in [&old, &new] {
            host.register(P).await;
        }
        assert!(old.take_reservation(P).await);
        assert!(old.write(P, sectors(0)).await);
        // The control state has it; the answer does not get out.
        let key = old.read_keys(P).await.unwrap()[0];
        let preempted = Rc::new(Cell::new(false));
        let (told, preempting) = (preempted.clone(), new.clone());
        cluster.clock.spawn(Box::pin(async move { told.set(preempting.preempt_key(P, key).await) }));
        let revision = || cluster.record(VOLUME).unwrap().reservations.revision;
        let before = revision();
        let late = begin_write(&cluster, &old, P, 1);
        while revision() == before {
            cluster.clock.sleep(micros(5)).await;
        }
        cluster.crash(P);
        until(&cluster, "the other one serves", || cluster.serves(S, VOLUME)).await;
        assert!(!preempted.get(), "nobody has heard of it");
        assert!(!old.write(S, sectors(0)).await, "the old holder is out");
        assert!(new.write(S, sectors(2)).await);
        let seen = new.read(S, sectors(1)).await;
        assert!(seen.is_some());
        pass(&cluster, 50).await;
        assert_eq!(new.read(S, sectors(1)).await, seen);
        drop(late);
        heals(&cluster).await;
    });
}

/// Between a preemption and the next reservation nobody holds one: the preempted host may write. What it has under way when
/// the next one is made ends before that is answered, and not before it can be seen (I17).
#[test]
fn a_reservation_is_answered_behind_the_writes_that_it_forbids() {
    scenario(|cluster| async move {
        let [old, new, next] = [0, 1, 2].map(|index| host(&cluster, index));
        for host in [&old, &new, &next] {
            host.register(P).await;
        }
        let victim = old.read_keys(P).await.unwrap()[0];
        let preempt = new.begin_preempt(P, victim).await.unwrap();
        assert_eq!(new.look_at_fence(P, &preempt).await, None, "nobody holds a reservation");
        cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 6_000_000));
        let late = begin_write(&cluster, &old, P, 0);
        cluster.clock.sleep(micros(400)).await;
        let (reserved, reserving) = (Rc::new(Cell::new(false)), next.clone());
        let told = reserved.clone();
        cluster.clock.spawn(Box::pin(async move { told.set(reserving.take_reservation(P).await) }));
        let mut seen = None;
        while seen.is_none() {
            seen = new.look_at_fence(P, &preempt).await;
        }
        assert_eq!(
            (late.get(), reserved.get()),
            (None, false),
            "it is in force for new commands, and drains"
        );
        until(&cluster, "it is answered", || reserved.get()).await;
        assert_eq!(late.get(), Some(true), "behind the write that it forbids");
        assert!(new.look_at_fence(P, &preempt).await.is_some());
        assert!(!old.write(P, sectors(0)).await);
        assert!(new.write(P, sectors(1)).await);
        heals(&cluster).await;
    });
}

#[test]
fn scenario_27_a_session_is_reinstated_when_its_writes_are_over() {
    scenario(|cluster| async move {
        let (one, other) = (host(&cluster, 0), host(&cluster, 1));
        assert!(one.write(P, sectors(0)).await);
        cluster.rooms[P].stall(Instant(cluster.clock.now().0 + 5_000_000));
        let in_flight = begin_write(&cluster, &one, P, 0);
        cluster.clock.sleep(micros(300)).await;
        one.leave(P);
        let began = cluster.clock.now();
        let seen = one.read(P, sectors(0)).await;
        assert!(cluster.clock.now().since(began) > Duration::from_millis(3), "the login waits for the drain");
        assert!(seen.is_some() && in_flight.get() != Some(true));
        for _ in 0..5 {
            pass(&cluster, 3).await;
            assert_eq!(other.read(P, sectors(0)).await, seen, "it never changes again");
        }
        heals(&cluster).await;
    });
}
