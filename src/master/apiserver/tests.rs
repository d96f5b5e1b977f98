//! The server as clients see it, without sockets: requests in, answers out, over a store in memory.

use std::net::Ipv4Addr;

use futures_lite::StreamExt;
use http_body_util::Full;
use serde_json::{Value, json};

use super::*;
use crate::base::task;
use crate::master::store::Store;

struct Api(Rc<Server>, Rc<Peer>);

/// A server with the bootstrap objects, asked by a member of system:masters.
fn api(test: impl AsyncFn(Api)) {
    task::run(async {
        let objects = Objects::new(Store::open(None).unwrap(), admission::admit);
        let key = rcgen::KeyPair::generate().unwrap();
        let server = Server::new(objects.clone(), Nodes::default(), key.serialize_pem().as_bytes()).unwrap();
        bootstrap::run(&objects, Ipv4Addr::LOCALHOST.into(), 6443).await.unwrap();
        server.set_ready();
        test(Api(server, peer("admin", &["system:masters"]))).await;
    });
}

/// Whoever shows a certificate with this name and these groups.
fn peer(name: &str, groups: &[&str]) -> Rc<Peer> {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(rcgen::DnType::OrganizationName, *group);
    }
    let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    Rc::new(Peer { address: (Ipv4Addr::LOCALHOST, 1).into(), certificate: Some(certificate.der().clone()) })
}

impl Api {
    async fn send(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: &str) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        self.0.clone().handle(request, self.1.clone()).await
    }

    /// Code and body of an answer that is JSON.
    async fn json(&self, method: &str, uri: &str, headers: &[(&str, &str)], body: Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(method, uri, headers, &body).await;
        let code = response.status().as_u16();
        let text = text(response).await;
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn get(&self, uri: &str) -> (u16, Value) {
        self.json("GET", uri, &[], Value::Null).await
    }

    async fn create(&self, uri: &str, body: Value) -> Value {
        let (code, answer) = self.json("POST", uri, &[], body).await;
        assert_eq!(code, 201, "{answer}");
        answer
    }
}

async fn text(response: Response<Body>) -> String {
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    String::from_utf8_lossy(&body).into_owned()
}

#[test]
fn only_the_masters_get_a_backup() {
    api(async |mut api| {
        api.create("/api/v1/namespaces/default/configmaps", config_map("web", "1")).await;
        let backup = api.send("GET", "/edgectl/backup", &[], "").await;
        assert_eq!(backup.status(), 200);
        let head = crate::master::store::dump::check(text(backup).await.as_bytes()).unwrap();
        assert_eq!(head.revision, api.0.objects.store().revision());
        // What a rule may give is not this.
        let binding = json!({"metadata": {"name": "jane"}, "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "jane"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}});
        api.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
        api.1 = peer("jane", &[]);
        assert_eq!(api.get("/metrics").await.0, 200);
        let (code, answer) = api.get("/edgectl/backup").await;
        assert_eq!((code, answer["reason"].as_str()), (403, Some("Forbidden")), "{answer}");
    });
}

fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"value": value}}, "data": {"key": value}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const TABLE: (&str, &str) = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");

#[test]
fn an_object_is_created_read_changed_and_deleted() {
    api(async |api| {
        let made = api.create(MAPS, config_map("a", "1")).await;
        assert_eq!((&made["metadata"]["namespace"], &made["kind"]), (&json!("default"), &json!("ConfigMap")));
        assert!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_string());
        assert_eq!(api.json("POST", MAPS, &[], config_map("a", "1")).await.1["message"], "configmaps \"a\" already exists");

        let mut changed = made.clone();
        changed["data"]["key"] = "2".into();
        let (code, changed) = api.json("PUT", &format!("{MAPS}/a"), &[], changed).await;
        assert_eq!((code, &changed["data"]["key"]), (200, &json!("2")));
        let (code, stale) = api.json("PUT", &format!("{MAPS}/a"), &[], made).await;
        assert_eq!((code, &stale["reason"]), (409, &json!("Conflict")));

        let merge = [("content-type", "application/merge-patch+json")];
        let (code, patched) = api.json("PATCH", &format!("{MAPS}/a"), &merge, json!({"data": {"key": null, "other": "3"}})).await;
        assert_eq!((code, &patched["data"]), (200, &json!({"other": "3"})));
        let (code, _) = api.json("PATCH", &format!("{MAPS}/a"), &[("content-type", "text/plain")], json!({})).await;
        assert_eq!(code, 415);

        let (code, gone) = api.json("DELETE", &format!("{MAPS}/a"), &[], json!({"dryRun": ["All"]})).await;
        assert_eq!((code, &gone["status"]), (200, &json!("Success")));
        let (code, gone) = api.json("DELETE", &format!("{MAPS}/a"), &[], json!({"propagationPolicy": "Background"})).await;
        assert_eq!((code, &gone["details"]["uid"]), (200, &patched["metadata"]["uid"]));
        let (code, missing) = api.get(&format!("{MAPS}/a")).await;
        assert_eq!((code, &missing["message"]), (404, &json!("configmaps \"a\" not found")));
    });
}

#[test]
fn what_is_applied_is_created_owned_and_defended() {
    api(async |api| {
        let send = async |manager: &str, value: &str| {
            let apply = [("content-type", "application/apply-patch+yaml")];
            let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"key": value}});
            api.json("PATCH", &format!("{MAPS}/a?fieldManager={manager}"), &apply, config).await
        };
        assert_eq!(send("one", "1").await.0, 201);
        let (code, conflict) = send("two", "2").await;
        assert_eq!((code, &conflict["details"]["causes"][0]["field"]), (409, &json!(".data.key")));
        let (code, same) = send("two", "1").await;
        assert_eq!((code, same["metadata"]["managedFields"].as_array().unwrap().len()), (200, 2));
        let (_, again) = send("two", "1").await;
        assert_eq!(again["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"]);
        assert_eq!(send("", "1").await.0, 400);
    });
}

#[test]
fn who_writes_a_field_that_nothing_acts_on_is_warned() {
    api(async |api| {
        const PODS: &str = "/api/v1/namespaces/default/pods";
        let warnings = async |method: &str, uri: &str, headers: &[(&str, &str)], body: Value| {
            let response = api.send(method, uri, headers, &body.to_string()).await;
            assert!(response.status().is_success(), "{method} {uri}: {}", response.status());
            response.headers().get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let pod = |name: &str, container: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": [container]}});
        let plain = json!({"name": "c", "image": "i", "command": ["sleep"], "env": [{"name": "A", "value": "b"}]});
        let probed = json!({"name": "c", "image": "i", "lifecycle": {"preStop": {"exec": {"command": ["true"]}}}});
        let told = "299 - \"spec.containers[0].lifecycle: stored, but this version does not act on it\"";
        let none: [&str; 0] = [];
        assert_eq!(warnings("POST", PODS, &[], pod("plain", plain)).await, none);
        assert_eq!(warnings("POST", PODS, &[], pod("probed", probed.clone())).await, [told]);
        let apply = [("content-type", "application/apply-patch+yaml")];
        assert_eq!(warnings("PATCH", &format!("{PODS}/applied?fieldManager=test"), &apply, pod("applied", probed)).await, [told]);
        let merge = [("content-type", "application/merge-patch+json")];
        let label = json!({"metadata": {"labels": {"a": "b"}}});
        assert_eq!(warnings("PATCH", &format!("{PODS}/probed"), &merge, label.clone()).await, [told]);
        assert_eq!(warnings("PATCH", &format!("{PODS}/plain"), &merge, label).await, none);
        let status = json!({"status": {"phase": "Running"}});
        assert_eq!(warnings("PATCH", &format!("{PODS}/probed/status"), &merge, status).await, none);
    });
}

#[test]
fn lists_come_in_pages_of_one_snapshot() {
    api(async |api| {
        for name in ["a", "b", "c", "d", "e"] {
            api.create(MAPS, config_map(name, "1")).await;
        }
        let (_, first) = api.get(&format!("{MAPS}?limit=2")).await;
        let names =
            |list: &Value| list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()).collect::<Vec<_>>();
        assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec![json!("a"), json!("b")], &json!(3)));
        let token = first["metadata"]["continue"].as_str().unwrap();
        // What happens in between is not seen: c goes, bb comes.
        api.json("DELETE", &format!("{MAPS}/c"), &[], Value::Null).await;
        api.create(MAPS, config_map("bb", "1")).await;
        let (_, rest) = api.get(&format!("{MAPS}?limit=10&continue={token}")).await;
        assert_eq!(names(&rest), [json!("c"), json!("d"), json!("e")]);
        assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        let (_, selected) = api.get(&format!("{MAPS}?labelSelector=value%3D1&fieldSelector=metadata.name%3Dbb")).await;
        assert_eq!(names(&selected), ["bb"]);
        assert_eq!(api.get(&format!("{MAPS}?resourceVersion=999999&resourceVersionMatch=NotOlderThan")).await.0, 504);
    });
}

#[test]
fn a_watch_tells_of_changes_and_of_what_enters_and_leaves_its_selector() {
    api(async |api| {
        api.create(MAPS, config_map("a", "1")).await;
        let uri = format!(
            "{MAPS}?watch=1&labelSelector=value%3D1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        );
        let response = api.send("GET", &uri, &[], "").await;
        let Body::Stream(mut stream) = response.into_body() else { panic!("a watch is a stream") };
        let mut lines: std::collections::VecDeque<Value> = Default::default();
        let mut next = async || {
            while lines.is_empty() {
                let chunk = stream.next().await.unwrap().unwrap();
                lines.extend(
                    chunk
                        .split(|byte| *byte == b'\n')
                        .filter(|line| !line.is_empty())
                        .map(|line| serde_json::from_slice::<Value>(line).unwrap()),
                );
            }
            lines.pop_front().unwrap()
        };
        let first = next().await;
        assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
        let end = next().await;
        assert_eq!(
            (&end["type"], &end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"]),
            (&json!("BOOKMARK"), &json!("true"))
        );
        let merge = [("content-type", "application/merge-patch+json")];
        let label = |value: &str| json!({"metadata": {"labels": {"value": value}}});
        api.json("PATCH", &format!("{MAPS}/a"), &merge, label("2")).await;
        let left = next().await;
        assert_eq!((&left["type"], &left["object"]["data"]["key"]), (&json!("DELETED"), &json!("1")));
        api.json("PATCH", &format!("{MAPS}/a"), &merge, label("1")).await;
        assert_eq!(next().await["type"], "ADDED");
        api.json("DELETE", &format!("{MAPS}/a"), &[], Value::Null).await;
        assert_eq!(next().await["type"], "DELETED");
        assert_eq!(api.0.watches.count(), 1);
        drop(stream);
        assert_eq!(api.0.watches.count(), 0);
    });
}

#[test]
fn tables_are_given_where_they_make_sense() {
    api(async |api| {
        let (_, table) = api.json("GET", "/api/v1/namespaces?limit=500", &[TABLE], Value::Null).await;
        assert_eq!(table["columnDefinitions"][1]["name"], "Status");
        assert_eq!((&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][1]), (&json!("default"), &json!("Active")));
        let review = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
        let (code, _) = api.json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &[TABLE], review.clone()).await;
        assert_eq!(code, 406);
        let allowed = api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await;
        assert_eq!(allowed["status"]["allowed"], true);
    });
}

#[test]
fn only_those_with_the_right_are_let_in() {
    api(async |mut api| {
        let admin = api.1.clone();
        api.1 = Rc::new(Peer { address: admin.address, certificate: None });
        let (code, refused) = api.get("/api/v1/namespaces/default/pods").await;
        let expected =
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
        assert_eq!((code, &refused["message"]), (403, &json!(expected)));
        assert_eq!(api.get("/version").await.0, 200);
        let (code, _) = api.json("GET", "/api", &[("authorization", "Bearer nonsense")], Value::Null).await;
        assert_eq!(code, 401);

        api.1 = peer("jane", &[]);
        assert_eq!(api.get("/api").await.0, 200);
        assert_eq!(api.get(MAPS).await.0, 403);
        let jane = api.1.clone();
        api.1 = admin.clone();
        let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
        let binding = |name: &str, role: &str, user: &str| {
            json!({"metadata": {"name": name}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]})
        };
        api.create(bindings, binding("jane", "admin", "jane")).await;
        api.1 = jane;
        assert_eq!(api.get(MAPS).await.0, 200);
        assert_eq!(api.get("/api/v1/configmaps").await.0, 403);
        // Nobody gives away more than they have.
        assert_eq!(api.json("POST", bindings, &[], binding("joe", "edit", "joe")).await.0, 201);
        assert_eq!(api.json("POST", bindings, &[], binding("root", "cluster-admin", "jane")).await.0, 403);
        let merge = [("content-type", "application/merge-patch+json")];
        let (code, _) =
            api.json("PATCH", &format!("{bindings}/joe"), &merge, json!({"subjects": [], "roleRef": {"name": "cluster-admin"}})).await;
        assert_eq!(code, 403);

        api.1 = admin;
        let (code, _) = api.json("GET", MAPS, &[("impersonate-user", "joe")], Value::Null).await;
        assert_eq!(code, 200);
        let (code, _) = api.json("GET", "/api/v1/nodes", &[("impersonate-user", "joe")], Value::Null).await;
        assert_eq!(code, 403);
    });
}

#[test]
fn a_node_reaches_only_what_is_its_own() {
    api(async |mut api| {
        let secret = |name: &str| json!({"metadata": {"name": name}, "stringData": {"a": "b"}});
        for name in ["used", "other"] {
            api.create("/api/v1/namespaces/default/secrets", secret(name)).await;
        }
        for (name, node) in [("mine", "board-1"), ("theirs", "board-2")] {
            let pod = json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x",
                "envFrom": [{"secretRef": {"name": if node == "board-1" { "used" } else { "other" }}}]}]}});
            api.create("/api/v1/namespaces/default/pods", pod).await;
        }
        let admin = std::mem::replace(&mut api.1, peer("system:node:board-1", &["system:nodes"]));
        let merge = [("content-type", "application/merge-patch+json")];
        let pods = "/api/v1/namespaces/default/pods";
        for (method, uri, body, code) in [
            ("POST", "/api/v1/nodes".to_owned(), json!({"metadata": {"name": "board-1"}}), 201),
            ("POST", "/api/v1/nodes".to_owned(), json!({"metadata": {"name": "board-2"}}), 403),
            ("PATCH", "/api/v1/nodes/board-1/status".to_owned(), json!({"status": {"phase": "Running"}}), 200),
            ("PATCH", "/api/v1/nodes/board-2/status".to_owned(), json!({"status": {"phase": "Running"}}), 403),
            ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dboard-1".to_owned(), Value::Null, 200),
            ("GET", "/api/v1/pods".to_owned(), Value::Null, 403),
            ("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dboard-2".to_owned(), Value::Null, 403),
            ("PATCH", format!("{pods}/mine/status"), json!({"status": {"phase": "Running"}}), 200),
            ("PATCH", format!("{pods}/theirs/status"), json!({"status": {"phase": "Running"}}), 403),
            ("PATCH", format!("{pods}/mine"), json!({"metadata": {"labels": {"a": "b"}}}), 403),
            ("POST", pods.to_owned(), json!({"metadata": {"name": "new"}}), 403),
            ("GET", "/api/v1/namespaces/default/secrets/used".to_owned(), Value::Null, 200),
            ("GET", "/api/v1/namespaces/default/secrets/other".to_owned(), Value::Null, 403),
            ("GET", "/api/v1/namespaces/default/secrets".to_owned(), Value::Null, 403),
            ("GET", "/api/v1/services".to_owned(), Value::Null, 200),
            ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(), Value::Null, 403),
            ("DELETE", format!("{pods}/theirs"), Value::Null, 403),
        ] {
            let headers = if method == "PATCH" { &merge[..] } else { &[] };
            let (seen, answer) = api.json(method, &uri, headers, body).await;
            assert_eq!(seen, code, "{method} {uri}: {answer}");
        }
        // Policies select pods of all nodes.
        let node = std::mem::replace(&mut api.1, admin);
        let policy = json!({"metadata": {"name": "deny"}, "spec": {"podSelector": {}}});
        api.create("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", policy).await;
        api.1 = node;
        assert_eq!(api.get("/api/v1/pods").await.0, 200);
        assert_eq!(api.json("DELETE", &format!("{pods}/theirs"), &[], Value::Null).await.0, 403);
    });
}

#[test]
fn a_service_account_acts_with_its_token() {
    api(async |mut api| {
        api.create("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "robot"}})).await;
        let tokens = "/api/v1/namespaces/default/serviceaccounts/robot/token";
        let made = api.create(tokens, json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": {}})).await;
        let bearer = format!("Bearer {}", made["status"]["token"].as_str().unwrap());
        let (code, refused) = api.json("POST", tokens, &[], json!({"spec": {"expirationSeconds": 1}})).await;
        assert_eq!(code, 422, "{refused}");
        let admin = api.1.clone();
        api.1 = Rc::new(Peer { address: admin.address, certificate: None });
        let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
        let (_, who) = api.json("POST", whoami, &[("authorization", &bearer)], json!({})).await;
        assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:robot", "{who}");
        // The token ends with the account.
        let anonymous = std::mem::replace(&mut api.1, admin);
        api.json("DELETE", "/api/v1/namespaces/default/serviceaccounts/robot", &[], Value::Null).await;
        api.1 = anonymous;
        assert_eq!(api.json("POST", whoami, &[("authorization", &bearer)], json!({})).await.0, 401);
    });
}

#[test]
fn a_pod_gets_its_token_tolerations_and_first_status() {
    api(async |api| {
        let pod = json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
        let made = api.create("/api/v1/namespaces/default/pods", pod).await;
        assert!(made["metadata"]["name"].as_str().unwrap().starts_with("web-"));
        assert_eq!((&made["status"]["phase"], &made["status"]["qosClass"]), (&json!("Pending"), &json!("BestEffort")));
        assert_eq!((&made["spec"]["serviceAccountName"], &made["spec"]["priority"]), (&json!("default"), &json!(0)));
        assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 2);
        assert_eq!(made["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
        let name = made["metadata"]["name"].as_str().unwrap();
        let binding = json!({"target": {"kind": "Node", "name": "board-1"}});
        api.create(&format!("/api/v1/namespaces/default/pods/{name}/binding"), binding.clone()).await;
        let (_, bound) = api.get(&format!("/api/v1/namespaces/default/pods/{name}")).await;
        assert_eq!((&bound["spec"]["nodeName"], &bound["status"]["conditions"][0]["type"]), (&json!("board-1"), &json!("PodScheduled")));
        let (code, _) = api.json("POST", &format!("/api/v1/namespaces/default/pods/{name}/binding"), &[], binding).await;
        assert_eq!(code, 409);
        assert_eq!(api.json("POST", "/api/v1/namespaces/nowhere/pods", &[], json!({"metadata": {"name": "x"}})).await.0, 404);
    });
}

#[test]
fn services_get_addresses_and_scales_change_replicas() {
    api(async |api| {
        let (_, kubernetes) = api.get("/api/v1/namespaces/default/services/kubernetes").await;
        assert_eq!(kubernetes["spec"]["clusterIPs"], json!(["10.96.0.1"]));
        let service = json!({"metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let made = api.create("/api/v1/namespaces/default/services", service).await;
        assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.96."));
        assert!(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap() >= 30_000);

        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}});
        let deployment = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
        let deployments = "/apis/apps/v1/namespaces/default/deployments";
        let made = api.create(deployments, deployment).await;
        assert_eq!(made["metadata"]["generation"], 1);
        let merge = [("content-type", "application/merge-patch+json")];
        let (code, scale) = api.json("PATCH", &format!("{deployments}/web/scale"), &merge, json!({"spec": {"replicas": 5}})).await;
        assert_eq!(
            (code, &scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
            (200, &json!("Scale"), &json!(5), &json!("app=web"))
        );
        let (_, deployment) = api.get(&format!("{deployments}/web")).await;
        assert_eq!((&deployment["spec"]["replicas"], &deployment["metadata"]["generation"]), (&json!(5), &json!(2)));
        let status = json!({"status": {"replicas": 5}, "spec": {"replicas": 9}});
        let (code, _) = api.json("PATCH", &format!("{deployments}/web/status"), &merge, status).await;
        let (_, deployment) = api.get(&format!("{deployments}/web")).await;
        assert_eq!((code, &deployment["spec"]["replicas"], &deployment["status"]["replicas"]), (200, &json!(5), &json!(5)));
    });
}

#[test]
fn documents_answer_with_what_clients_need_to_begin() {
    api(async |api| {
        let (_, version) = api.get("/version/").await;
        assert_eq!((&version["major"], &version["minor"]), (&json!("1"), &json!("36")));
        let aggregated = ("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json");
        let response = api.send("GET", "/apis", &[aggregated], "").await;
        assert_eq!(response.headers()["content-type"], crate::api::discovery::AGGREGATED);
        let tag = response.headers()["etag"].to_str().unwrap().to_owned();
        let response = api.send("GET", "/apis", &[aggregated, ("if-none-match", &tag)], "").await;
        assert_eq!(response.status(), 304);
        let (_, list) = api.get("/apis/").await;
        assert_eq!(list["kind"], "APIGroupList");
        let (_, resources) = api.get("/apis/apps/v1").await;
        assert_eq!(resources["kind"], "APIResourceList");
        let response = api.send("GET", "/openapi/v3/api/v1", &[("accept-encoding", "gzip")], "").await;
        assert_eq!((response.status().as_u16(), &response.headers()["content-encoding"]), (200, &"gzip".parse().unwrap()));
        let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        let response = api.send("GET", "/openapi/v2", &[("accept", accept)], "").await;
        let content_type = response.headers()["content-type"].to_str().unwrap_or_default();
        assert_eq!((response.status().as_u16(), content_type), (200, crate::api::openapi::V2_MEDIA_TYPE));
        assert_eq!(
            text(api.send("GET", "/readyz?verbose", &[], "").await).await,
            "[+]ping ok\n[+]store ok\n[+]bootstrap ok\nreadyz check passed\n"
        );
        assert_eq!(api.get("/healthz").await.1, "ok");
        assert_eq!(api.get("/apis/none/v1").await.0, 404);
    });
}

#[test]
fn a_bootstrapper_asks_for_a_certificate_and_does_nothing_else() {
    api(async |mut api| {
        let secret = json!({"metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token", "stringData": {
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
        }});
        api.create("/api/v1/namespaces/kube-system/secrets", secret).await;
        api.1 = Rc::new(Peer { address: api.1.address, certificate: None });
        let bearer = [("authorization", "Bearer abcdef.0123456789abcdef")];
        let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        // What it says about itself does not count.
        let request = json!({"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Approved", "status": "True"}]}, "spec": {
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "usages": ["client auth"], "request": "eA==",
            "username": "system:node:web", "groups": ["system:nodes"],
        }});
        let (code, made) = api.json("POST", requests, &bearer, request).await;
        assert_eq!((code, &made["spec"]["username"]), (201, &json!("system:bootstrap:abcdef")), "{made}");
        assert_eq!(made["spec"]["groups"], json!(["system:bootstrappers", "system:authenticated"]));
        assert_eq!(made["status"]["conditions"], Value::Null, "{made}");
        assert_eq!(api.json("GET", &format!("{requests}/a"), &bearer, Value::Null).await.0, 200);
        let approval = [bearer[0], ("content-type", "application/merge-patch+json")];
        assert_eq!(api.json("PATCH", &format!("{requests}/a/approval"), &approval, json!({})).await.0, 403);
        assert_eq!(api.json("GET", "/api/v1/nodes", &bearer, Value::Null).await.0, 403);
        let wrong = [("authorization", "Bearer abcdef.0123456789abcdee")];
        assert_eq!(api.json("POST", requests, &wrong, json!({})).await.0, 401);
    });
}
