//! Rows of who may do what: role bindings, certificate requests, admission policies, flow schemas.
//! Roles themselves have no columns of their own.

use serde_json::Value;

use super::*;

pub const ALL: &[(&str, &Layout)] = &[
    ("rolebindings", &BINDINGS),
    ("clusterrolebindings", &BINDINGS),
    ("certificatesigningrequests", &CERTIFICATE_REQUESTS),
    ("clustertrustbundles", &TRUST_BUNDLES),
    ("mutatingwebhookconfigurations", &WEBHOOKS),
    ("validatingwebhookconfigurations", &WEBHOOKS),
    ("validatingadmissionpolicies", &VALIDATING_POLICIES),
    ("mutatingadmissionpolicies", &MUTATING_POLICIES),
    ("validatingadmissionpolicybindings", &POLICY_BINDINGS),
    ("mutatingadmissionpolicybindings", &POLICY_BINDINGS),
    ("flowschemas", &FLOW_SCHEMAS),
    ("prioritylevelconfigurations", &PRIORITY_LEVELS),
];

pub fn of(plural: &str) -> Option<&'static Layout> {
    ALL.iter().find(|row| row.0 == plural).map(|row| row.1)
}

static BINDINGS: Layout = layout(
    &[NAME, text_column("Role"), AGE, wide_column("Users"), wide_column("Groups"), wide_column("ServiceAccounts")],
    |binding, now| {
        let subjects = |kind: &str| {
            let of_kind = items(binding, "/subjects").iter().filter(|subject| subject["kind"] == kind);
            let names: Vec<String> = of_kind
                .map(|subject| match text(subject, "/namespace") {
                    "" => text(subject, "/name").to_owned(),
                    namespace => format!("{namespace}/{}", text(subject, "/name")),
                })
                .collect();
            Value::from(names.join(", "))
        };
        let role = format!("{}/{}", text(binding, "/roleRef/kind"), text(binding, "/roleRef/name"));
        vec![name(binding), role.into(), age(binding, now), subjects("User"), subjects("Group"), subjects("ServiceAccount")]
    },
);

static CERTIFICATE_REQUESTS: Layout = layout(
    &[NAME, AGE, text_column("SignerName"), text_column("Requestor"), text_column("RequestedDuration"), text_column("Condition")],
    |request, now| {
        let lasts = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
        let has = |kind: &str| items(request, "/status/conditions").iter().any(|condition| condition["type"] == kind);
        let mut status = match () {
            _ if has("Denied") => "Denied",
            _ if has("Approved") => "Approved",
            _ => "Pending",
        }
        .to_owned();
        if has("Failed") {
            status += ",Failed";
        }
        if !text(request, "/status/certificate").is_empty() {
            status += ",Issued";
        }
        vec![
            name(request),
            age(request, now),
            text_or(request, "/spec/signerName", "<none>"),
            text(request, "/spec/username").into(),
            lasts.map_or("<none>".into(), |seconds| duration::human(seconds * 1_000_000)).into(),
            status.into(),
        ]
    },
);

static TRUST_BUNDLES: Layout =
    layout(&[NAME, text_column("SignerName")], |bundle, _| vec![name(bundle), text_or(bundle, "/spec/signerName", "<none>")]);

static WEBHOOKS: Layout =
    layout(&[NAME, number_column("Webhooks"), AGE], |hooks, now| vec![name(hooks), size(hooks, "/webhooks").into(), age(hooks, now)]);

static VALIDATING_POLICIES: Layout =
    layout(&[NAME, number_column("Validations"), text_column("ParamKind"), AGE], |object, now| policy(object, now, "/spec/validations"));

static MUTATING_POLICIES: Layout =
    layout(&[NAME, number_column("Mutations"), text_column("ParamKind"), AGE], |object, now| policy(object, now, "/spec/mutations"));

fn policy(policy: &Value, now: Timestamp, rules: &str) -> Vec<Value> {
    let kind = policy.pointer("/spec/paramKind").filter(|kind| kind.is_object());
    let kind = kind.map_or("<unset>".into(), |kind| format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")));
    vec![name(policy), size(policy, rules).into(), kind.into(), age(policy, now)]
}

static POLICY_BINDINGS: Layout = layout(&[NAME, text_column("PolicyName"), text_column("ParamRef"), AGE], |binding, now| {
    let reference = binding.pointer("/spec/paramRef").filter(|reference| reference.is_object());
    let reference = reference.map_or("<unset>".into(), |reference| match (text(reference, "/namespace"), text(reference, "/name")) {
        (_, "") => selector(reference, "/selector"),
        ("", name) => format!("*/{name}"),
        (namespace, name) => format!("{namespace}/{name}"),
    });
    vec![name(binding), text(binding, "/spec/policyName").into(), reference.into(), age(binding, now)]
});

static FLOW_SCHEMAS: Layout = layout(
    &[
        NAME,
        text_column("PriorityLevel"),
        text_column("MatchingPrecedence"),
        text_column("DistinguisherMethod"),
        AGE,
        text_column("MissingPL"),
    ],
    |schema, now| {
        let dangling = match condition(schema, "Dangling") {
            "" => "?",
            status => status,
        };
        vec![
            name(schema),
            text(schema, "/spec/priorityLevelConfiguration/name").into(),
            number(schema, "/spec/matchingPrecedence"),
            text_or(schema, "/spec/distinguisherMethod/type", "<none>"),
            age(schema, now),
            dangling.into(),
        ]
    },
);

static PRIORITY_LEVELS: Layout = layout(
    &[
        NAME,
        text_column("Type"),
        text_column("NominalConcurrencyShares"),
        text_column("Queues"),
        text_column("HandSize"),
        text_column("QueueLengthLimit"),
        AGE,
    ],
    |level, now| {
        let limited = |pointer: &str| level.pointer(pointer).cloned().unwrap_or_else(|| "<none>".into());
        vec![
            name(level),
            text(level, "/spec/type").into(),
            limited("/spec/limited/nominalConcurrencyShares"),
            limited("/spec/limited/limitResponse/queuing/queues"),
            limited("/spec/limited/limitResponse/queuing/handSize"),
            limited("/spec/limited/limitResponse/queuing/queueLengthLimit"),
            age(level, now),
        ]
    },
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_list_their_subjects_by_kind() {
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "view"}, "subjects": [
            {"kind": "User", "name": "jane"}, {"kind": "ServiceAccount", "namespace": "shop", "name": "web"}, {"kind": "User", "name": "joe"}]});
        let cells = (BINDINGS.cells)(&binding, Timestamp::now());
        assert_eq!((&cells[1], &cells[3], &cells[5]), (&json!("ClusterRole/view"), &json!("jane, joe"), &json!("shop/web")));
    }
}
