//! Tables for one pass of the plan, and whole rollouts played against it in random order.

use serde_json::json;

use super::*;
use crate::api::workloads::Condition;

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

fn deployment(desired: i64, surge: &str, unavailable: &str, image: &str) -> Deployment {
    let number = |text: &str| text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number));
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {
            "replicas": desired,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": number(surge), "maxUnavailable": number(unavailable)}},
            "progressDeadlineSeconds": 600,
        },
    }))
    .unwrap()
}

/// A set of `image` with so many replicas, all of them there and so many of them available.
fn set(of: &Deployment, image: &str, number: i64, size: i64, available: i64) -> ReplicaSet {
    let mut like = of.clone();
    like.spec.template["spec"]["containers"][0]["image"] = image.into();
    let mut set = ReplicaSet::default();
    set.metadata.name = format!("web-{image}");
    set.metadata.generation = 1;
    set.metadata.creation_timestamp = Some(Timestamp::from_seconds(number));
    set.metadata.annotations.insert(REVISION.to_owned(), number.to_string());
    set.metadata.annotations.insert(DESIRED_REPLICAS.to_owned(), replicas(of).to_string());
    set.metadata.annotations.insert(MAX_REPLICAS.to_owned(), (replicas(of) + max_surge(of)).to_string());
    set.spec.template = like.spec.template;
    set.spec.replicas = Some(size);
    set.status.replicas = size;
    set.status.ready_replicas = available;
    set.status.available_replicas = available;
    set.status.observed_generation = 1;
    set
}

fn scales(plan: &Plan) -> Vec<(&str, i64, i64)> {
    let scale = |op: &'_ Op| matches!(op, Op::Scale { .. });
    plan.ops
        .iter()
        .filter(|op| scale(op))
        .map(|op| match op {
            Op::Scale { name, from, to, .. } => (name.as_str(), *from, *to),
            _ => unreachable!(),
        })
        .collect()
}

fn progressing(plan: &Plan) -> &Condition {
    plan.status.conditions.iter().find(|condition| condition.kind == "Progressing").unwrap()
}

#[test]
fn a_new_deployment_makes_its_replica_set_at_full_size() {
    let deployment = deployment(3, "25%", "25%", "v1");
    let plan = plan(&deployment, &[], false, NOW);
    let [Op::Create { name, hash, replicas: 3, annotations }] = plan.ops.as_slice() else { panic!("{:?}", plan.ops) };
    assert_eq!(*name, format!("web-{hash}"));
    assert_eq!(
        (annotations[REVISION].as_str(), annotations[DESIRED_REPLICAS].as_str(), annotations[MAX_REPLICAS].as_str()),
        ("1", "3", "4")
    );
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(progressing(&plan).message, format!("Created new replica set \"{name}\""));
    assert_eq!(plan.status.unavailable_replicas, 3);
}

#[test]
fn surge_rounds_up_and_unavailability_down() {
    let check = |desired, surge, unavailable, expected| {
        let deployment = deployment(desired, surge, unavailable, "v1");
        assert_eq!((max_surge(&deployment), max_unavailable(&deployment)), expected, "{desired} {surge} {unavailable}");
    };
    check(3, "25%", "25%", (1, 0));
    check(10, "25%", "25%", (3, 2));
    check(1, "0%", "25%", (0, 1));
    check(4, "0%", "100%", (0, 4));
}

#[test]
fn a_new_template_starts_with_the_surge_and_takes_what_may_be_unavailable() {
    let deployment = deployment(4, "25%", "25%", "v2");
    let old = set(&deployment, "v1", 1, 4, 4);
    let first = plan(&deployment, std::slice::from_ref(&old), false, NOW);
    assert!(matches!(&first.ops[..], [Op::Create { replicas: 1, .. }, Op::Scale { from: 4, to: 3, .. }]), "{:?}", first.ops);
    assert_eq!(first.revision.as_deref(), Some("2"));
    let mut shrinking = old;
    shrinking.spec.replicas = Some(3);
    let new = set(&deployment, "v2", 2, 1, 0);
    assert_eq!(scales(&plan(&deployment, &[shrinking.clone(), new.clone()], false, NOW)), [], "the fourth old pod is still there");
    shrinking.status.replicas = 3;
    assert_eq!(scales(&plan(&deployment, &[shrinking, new.clone()], false, NOW)), [(new.metadata.name.as_str(), 1, 2)]);
}

#[test]
fn a_template_that_never_gets_ready_stops_the_rollout() {
    let deployment = deployment(10, "3", "2", "v2");
    let plan = plan(&deployment, &[set(&deployment, "v1", 1, 8, 8), set(&deployment, "v2", 2, 5, 0)], false, NOW);
    assert_eq!(scales(&plan), []);
}

#[test]
fn unhealthy_old_pods_go_first() {
    let deployment = deployment(4, "1", "1", "v3");
    let sets = [set(&deployment, "v1", 1, 2, 2), set(&deployment, "v2", 2, 2, 0), set(&deployment, "v3", 3, 1, 1)];
    assert_eq!(scales(&plan(&deployment, &sets, false, NOW)), [("web-v2", 2, 0)]);
}

#[test]
fn rolling_back_revives_the_old_set_with_a_new_revision() {
    let deployment = deployment(2, "1", "0", "v1");
    let plan = plan(&deployment, &[set(&deployment, "v1", 1, 0, 0), set(&deployment, "v2", 2, 2, 2)], false, NOW);
    let Op::Annotate { name, annotations, .. } = &plan.ops[0] else { panic!("{:?}", plan.ops) };
    assert_eq!((name.as_str(), annotations[REVISION].as_str(), annotations[revision::REVISION_HISTORY].as_str()), ("web-v1", "3", "1"));
    assert_eq!(plan.revision.as_deref(), Some("3"));
    assert_eq!(scales(&plan), [("web-v1", 0, 1)]);
}

#[test]
fn scaling_one_active_set_gives_it_all() {
    let mut deployment = deployment(5, "1", "1", "v1");
    let current = set(&deployment, "v1", 1, 5, 5);
    deployment.spec.replicas = Some(8);
    let plan = plan(&deployment, &[current], false, NOW);
    assert_eq!(scales(&plan), [("web-v1", 5, 8)]);
    let Some(Op::Scale { annotations, .. }) = plan.ops.last() else { panic!() };
    assert_eq!((annotations[DESIRED_REPLICAS].as_str(), annotations[MAX_REPLICAS].as_str()), ("8", "9"));
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_proportional() {
    // The example of Kubernetes' documentation: 10 replicas, 3 surge, scaled to 15 while 8 are old and 5 new.
    let mut deployment = deployment(10, "3", "2", "v2");
    let sets = [set(&deployment, "v1", 1, 8, 8), set(&deployment, "v2", 2, 5, 0)];
    deployment.spec.replicas = Some(15);
    assert_eq!(scales(&plan(&deployment, &sets, false, NOW)), [("web-v1", 8, 11), ("web-v2", 5, 7)]);
    deployment.spec.replicas = Some(0);
    let mut down = scales(&plan(&deployment, &sets, false, NOW)).iter().map(|scale| scale.2).collect::<Vec<_>>();
    down.sort_unstable();
    assert_eq!(down, [0, 0]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut deployment = deployment(3, "1", "1", "v2");
    deployment.spec.paused = true;
    let sets = [set(&deployment, "v1", 1, 3, 3)];
    let still = plan(&deployment, &sets, false, NOW);
    assert_eq!(still.ops, []);
    assert_eq!(progressing(&still).reason, "DeploymentPaused");
    deployment.spec.replicas = Some(5);
    assert_eq!(scales(&plan(&deployment, &sets, false, NOW)), [("web-v1", 3, 5)]);
    deployment.status = still.status;
    deployment.spec.paused = false;
    assert!(plan(&deployment, &[], false, NOW).status.conditions.iter().any(|each| each.kind == "Progressing"));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut deployment = deployment(3, "1", "1", "v2");
    deployment.spec.strategy = serde_json::from_value(json!({"type": "Recreate"})).unwrap();
    let old = set(&deployment, "v1", 1, 3, 3);
    assert_eq!(scales(&plan(&deployment, std::slice::from_ref(&old), true, NOW)), [("web-v1", 3, 0)]);
    let mut stopped = old;
    stopped.spec.replicas = Some(0);
    assert_eq!(plan(&deployment, std::slice::from_ref(&stopped), true, NOW).ops, [], "its status still counts pods");
    stopped.status = Default::default();
    assert_eq!(plan(&deployment, std::slice::from_ref(&stopped), true, NOW).ops, [], "a pod is still ending");
    assert!(matches!(&plan(&deployment, &[stopped], false, NOW).ops[..], [Op::Create { replicas: 3, .. }]));
}

#[test]
fn history_beyond_the_limit_is_deleted_oldest_first() {
    let mut deployment = deployment(1, "1", "1", "v5");
    deployment.spec.revision_history_limit = Some(2);
    let mut sets: Vec<_> = (1..5).map(|number| set(&deployment, &format!("v{number}"), number, 0, 0)).collect();
    sets.push(set(&deployment, "v5", 5, 1, 1));
    deployment.status = plan(&deployment, &sets, false, NOW).status;
    let ops = plan(&deployment, &sets, false, NOW).ops;
    assert_eq!(ops, [Op::Delete { name: "web-v1".to_owned() }, Op::Delete { name: "web-v2".to_owned() }]);
}

#[test]
fn conditions_tell_the_rollout() {
    let mut deployment = deployment(2, "1", "0", "v1");
    let at = |seconds: i64| Timestamp(NOW.0 + seconds * 1_000_000);
    let check = |deployment: &mut Deployment, set: ReplicaSet, now, reason: &str, message: &str| {
        let plan = plan(deployment, &[set], false, now);
        assert_eq!((progressing(&plan).reason.as_str(), progressing(&plan).message.as_str()), (reason, message));
        deployment.status = plan.status.clone();
        plan
    };
    let first = set(&deployment, "v1", 1, 2, 0);
    check(&mut deployment, first.clone(), at(0), "ReplicaSetUpdated", "ReplicaSet \"web-v1\" is progressing.");
    assert_eq!(deployment.status.conditions.iter().find(|each| each.kind == "Available").unwrap().status, "False");
    let waiting = check(&mut deployment, first.clone(), at(10), "ReplicaSetUpdated", "ReplicaSet \"web-v1\" is progressing.");
    assert_eq!(waiting.check_after, Some(Duration::from_secs(591)));
    check(&mut deployment, first, at(601), "ProgressDeadlineExceeded", "ReplicaSet \"web-v1\" has timed out progressing.");
    let half = set(&deployment, "v1", 1, 2, 1);
    check(&mut deployment, half, at(602), "ReplicaSetUpdated", "ReplicaSet \"web-v1\" is progressing.");
    let whole = set(&deployment, "v1", 1, 2, 2);
    let done = check(&mut deployment, whole, at(603), "NewReplicaSetAvailable", "ReplicaSet \"web-v1\" has successfully progressed.");
    assert_eq!((done.check_after, done.status.observed_generation, done.status.available_replicas), (None, 1, 2));
    assert_eq!(done.status.conditions.iter().find(|each| each.kind == "Available").unwrap().reason, "MinimumReplicasAvailable");
}

/// A small generator of numbers, so that a failing order can be played again from its seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

/// Plays a rollout: passes of the plan and pods that become ready or go, in the order `random` says; the plan sees statuses that may lag.
fn play(seed: u64) {
    let mut random = Random(seed | 1);
    let desired = 1 + random.below(12) as i64;
    let percent = |random: &mut Random| format!("{}%", random.below(101));
    let (surge, unavailable) = (percent(&mut random), percent(&mut random));
    let deployment = deployment(desired, &surge, &unavailable, "v2");
    let (surge, unavailable) = (max_surge(&deployment), max_unavailable(&deployment));
    let mut sets = vec![set(&deployment, "v1", 1, desired, desired)];
    for step in 0..10_000 {
        let told = format!("seed {seed} step {step}: {desired} replicas, surge {surge}, unavailable {unavailable}");
        match random.below(3) {
            0 => {
                for op in plan(&deployment, &sets, false, NOW).ops {
                    match op {
                        Op::Create { replicas, .. } => {
                            let mut new = set(&deployment, "v2", 2, replicas, 0);
                            new.status = Default::default();
                            sets.push(new);
                        }
                        Op::Scale { name, to, .. } => {
                            let set = sets.iter_mut().find(|set| set.metadata.name == name).unwrap();
                            set.spec.replicas = Some(to);
                        }
                        Op::Annotate { .. } => (),
                        Op::Delete { .. } => panic!("{told}: nothing is to be deleted"),
                    }
                }
            }
            1 => {
                // The ReplicaSet controller: pods appear, and those that go are unready ones first.
                let chosen = random.below(sets.len() as u64) as usize;
                let set = &mut sets[chosen];
                set.status.replicas = set.replicas();
                set.status.available_replicas = set.status.available_replicas.min(set.replicas());
            }
            _ => {
                let chosen = random.below(sets.len() as u64) as usize;
                let set = &mut sets[chosen];
                if set.status.available_replicas < set.status.replicas {
                    set.status.available_replicas += 1;
                }
            }
        }
        let available: i64 = sets.iter().map(|set| set.status.available_replicas).sum();
        let total: i64 = sets.iter().map(ReplicaSet::replicas).sum();
        // The old pods that were available before the rollout may be taken only as far as the budget goes.
        let after_scaling: i64 = sets.iter().map(|set| set.status.available_replicas.min(set.replicas())).sum();
        assert!(after_scaling >= desired - unavailable, "{told}: only {after_scaling} of {available} would stay available");
        assert!(total <= desired + surge, "{told}: {total} pods asked for");
        let [old, new] = sets.as_slice() else { continue };
        if old.replicas() == 0 && new.status.available_replicas == desired {
            return;
        }
    }
    panic!("seed {seed}: the rollout of {desired} replicas, surge {surge}, unavailable {unavailable} does not end: {sets:?}");
}

#[test]
fn rolling_updates_stay_within_their_fence_posts_in_every_order() {
    for seed in 1..2000 {
        play(seed * 0x9e37_79b9);
    }
}
