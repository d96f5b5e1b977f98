//! The API as real, unmodified kubectls of two Debian releases use it: a master without nodes, in a network namespace of its own,
//! and each verb with what it must say. Needs root.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::lab::{text, wait_until};

pub struct Master {
    process: Child,
    pub folder: PathBuf,
    pub kubectl: String,
}

impl Master {
    /// Starts a master, and finds the kubectl of a Debian suite.
    fn new(suite: &str) -> Self {
        Self::named("api", suite)
    }

    /// `topic` tells the folders of several masters apart.
    pub fn named(topic: &str, suite: &str) -> Self {
        let kubectl = kubectl(suite);
        let folder = std::env::temp_dir().join(format!("edgectl-test-{topic}-{suite}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let script = "ip link set lo up && ip link add up0 type bridge && ip address add 192.0.2.1/24 dev up0 && ip link set up0 up && exec \"$0\" master --root \"$1\" --name board-1";
        let process = Command::new("unshare")
            .args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_edgectl")])
            .arg(&folder)
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let master = Self { process, folder, kubectl };
        wait_until("the API is ready", || master.kubeconfig().exists() && master.run(&["get", "--raw", "/readyz"], "").status.success());
        master
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("etc/edgectl/admin.conf")
    }

    /// How a program is started where it reaches the master.
    pub fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.process.id()));
        command
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.inside();
        command.arg(&self.kubectl).args(arguments);
        command.env("KUBECONFIG", self.kubeconfig()).env("HOME", &self.folder).env("EDITOR", "sed -i s/hello/edited/");
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs a command line (no quotes in it) that must succeed, and gives both of its outputs.
    fn ok(&self, line: &str) -> String {
        self.pipe(line, "")
    }

    fn pipe(&self, line: &str, input: &str) -> String {
        let output = self.run(&line.split(' ').collect::<Vec<_>>(), input);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "kubectl {line}: {:?}\n{said}", output.status);
        said
    }

    /// What a command says that must fail.
    fn refused(&self, line: &str, input: &str) -> String {
        let output = self.run(&line.split(' ').collect::<Vec<_>>(), input);
        assert!(!output.status.success(), "kubectl {line} succeeds: {}", text(&output.stdout));
        text(&output.stderr)
    }

    fn says(&self, line: &str, expected: &str) {
        let said = self.ok(line);
        assert!(said.contains(expected), "kubectl {line} says\n{said}\nand not {expected:?}");
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("log of the master:\n{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The path of a Debian suite's kubectl.
pub fn kubectl(suite: &str) -> String {
    let found = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/get-kubectl")).arg(suite).arg(kubectls()).output().unwrap();
    assert!(found.status.success(), "get-kubectl {suite}: {}", text(&found.stderr));
    text(&found.stdout).trim().to_owned()
}

/// Where kubectls are kept: beside what else the tests build, unless the machine has them already.
fn kubectls() -> PathBuf {
    let shared = PathBuf::from("/opt/kubectl");
    if shared.exists() { shared } else { Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubectl") }
}

const PAGE: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: page, labels: {tier: front}}
data: {index: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, labels: {app: api}}
spec:
  replicas: 1
  selector: {matchLabels: {app: api}}
  template:
    metadata: {labels: {app: api}}
    spec:
      containers:
      - {name: c, image: busybox, env: [{name: A, value: one}], ports: [{containerPort: 80}]}
";

fn every_verb(suite: &str) {
    let master = Master::new(suite);

    // What there is.
    master.says("version", "Server Version: v1.36.0+edgectl");
    master.says("cluster-info", "https://192.0.2.1:6443");
    master.says("api-versions", "networking.k8s.io/v1");
    master.says("api-resources", "deployments                         deploy       apps/v1");
    master.says("get all -A", "service/kubernetes");
    master.says("get namespaces", "kube-node-lease   Active");
    master.says("explain deployment.spec.replicas", "FIELD: replicas <integer>");
    master.says("get --raw /readyz?verbose", "readyz check passed");

    // Everything that has a generator; all but the last come as protobuf.
    for (line, made) in [
        ("namespace shop", "namespace/shop"),
        ("configmap cm --from-literal=a=b", "configmap/cm"),
        ("secret generic s --from-literal=p=q", "secret/s"),
        ("serviceaccount robot", "serviceaccount/robot"),
        ("service clusterip web --tcp=80:8080", "service/web"),
        ("service nodeport np --tcp=80", "service/np"),
        ("role rd --verb=get --resource=pods", "role.rbac.authorization.k8s.io/rd"),
        ("rolebinding rb --role=rd --serviceaccount=default:robot", "rolebinding.rbac.authorization.k8s.io/rb"),
        ("clusterrole cr --verb=list --resource=nodes", "clusterrole.rbac.authorization.k8s.io/cr"),
        ("clusterrolebinding crb --clusterrole=view --user=jane", "clusterrolebinding.rbac.authorization.k8s.io/crb"),
        ("job once --image=busybox -- true", "job.batch/once"),
        ("cronjob often --image=busybox --schedule=@hourly -- true", "cronjob.batch/often"),
        ("ingress ing --rule=a.b/x*=web:80", "ingress.networking.k8s.io/ing"),
        ("quota q --hard=pods=100", "resourcequota/q"),
        ("pdb pdb --selector=app=web --min-available=1", "poddisruptionbudget.policy/pdb"),
        ("priorityclass high --value=1000", "priorityclass.scheduling.k8s.io/high"),
        ("deployment web --image=nginx --replicas=2", "deployment.apps/web"),
    ] {
        master.says(&format!("create {line}"), &format!("{made} created"));
    }
    assert!(master.refused("create configmap cm", "").contains("configmaps \"cm\" already exists"));
    assert_eq!(master.ok("create token robot").trim().split('.').count(), 3);

    // Tables.
    master.says("get secret,svc", "service/np           NodePort    10.96.");
    master.says("get job,cronjob,ingress,pdb", "job.batch/once   Running   0/1");
    master.says("get rolebinding rb -o wide", "default/robot");
    master.says("get clusterrole cr", "CREATED AT");
    master.says("get deployments -o wide --show-labels", "app=web");

    // Manifests.
    let said = master.pipe("apply -f -", PAGE);
    assert!(said.contains("configmap/page created") && said.contains("deployment.apps/api created"), "{said}");
    assert!(master.pipe("apply -f -", PAGE).contains("configmap/page unchanged"));
    let changed = PAGE.replace("replicas: 1", "replicas: 3");
    let difference = master.run(&["diff", "-f", "-"], &changed);
    assert!(text(&difference.stdout).contains("+  replicas: 3"), "{}", text(&difference.stderr));
    assert!(master.pipe("apply -f - --dry-run=server", &changed).contains("deployment.apps/api configured (server dry run)"));
    assert_eq!(master.ok("get deployment api -o jsonpath={.spec.replicas}"), "1");
    assert!(master.pipe("apply -f -", &changed).contains("deployment.apps/api configured"));
    let wrong = master.refused("apply -f -", &PAGE.replace("replicas", "replicass"));
    assert!(wrong.contains("strict decoding error: unknown field \"spec.replicass\""), "{wrong}");
    let warned = master.pipe("apply --validate=warn -f -", &PAGE.replacen("data: {index", "dataa: {}\ndata: {index", 1));
    assert!(warned.contains("Warning: unknown field \"dataa\""), "{warned}");
    let deployment = master.ok("get deployment api -o json");
    for field in ["revisionHistoryLimit", "progressDeadlineSeconds", "terminationMessagePath", "securityContext"] {
        assert!(deployment.contains(field), "defaults have no {field}");
    }

    // Changes.
    master.says("patch configmap page -p {\"data\":{\"x\":\"y\"}}", "configmap/page patched");
    master.says("patch configmap page --type=merge -p {\"data\":{\"x\":null}}", "configmap/page patched");
    master.says("patch deployment api --type=json -p [{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":2}]", "patched");
    master.says("label configmap page tier=back --overwrite", "configmap/page labeled");
    master.says("annotate configmap page note=hi", "configmap/page annotated");
    master.says("edit configmap page", "configmap/page edited");
    assert_eq!(master.ok("get configmap -l tier=back -o jsonpath={.items[0].data}"), "{\"index\":\"edited\"}");
    master.says("get configmap --field-selector metadata.name=page -o name", "configmap/page");
    master.says("scale deployment api --replicas=4", "deployment.apps/api scaled");
    master.says("get deployment api --subresource=scale", "api    4");
    master.says("set image deployment/api c=nginx", "image updated");
    master.says("set env deployment/api Z=1", "env updated");
    master.says("rollout restart deployment/api", "restarted");
    master.says("rollout history deployment/api", "REVISION");
    assert!(master.refused("rollout status deployment/api --timeout=1s", "").contains("timed out"));
    master.says("expose deployment api --port=80", "service/api exposed");
    let autoscale = if suite == "sid" { "--cpu=80%" } else { "--cpu-percent=80" };
    master.says(&format!("autoscale deployment api --max=5 {autoscale}"), "autoscaled");
    master.says("get hpa", "cpu: <unknown>/80%");
    master.says("describe deployment api", "Scaled up replica set api-");
    assert!(master.pipe("replace -f -", PAGE.split("---").next().unwrap()).contains("configmap/page replaced"));

    // Server-side apply, also of what was applied by the client before.
    let map = PAGE.split("---").next().unwrap();
    assert!(master.pipe("apply --server-side -f -", map).contains("configmap/page serverside-applied"));
    let other = map.replace("hello", "other");
    let conflict = master.refused("apply --server-side --field-manager=other -f -", &other);
    assert!(conflict.contains("conflicts with \"kubectl\"") && conflict.contains(".data.index"), "{conflict}");
    assert!(master.pipe("apply --server-side --field-manager=other --force-conflicts -f -", &other).contains("serverside-applied"));
    assert_eq!(master.ok("get configmap page -o jsonpath={.data.index}"), "other");
    master.says("get configmap page -o yaml --show-managed-fields", "manager: other");

    // Pods, though there is no node for them.
    master.says("run lonely --image=busybox -- sleep 1", "pod/lonely created");
    master.says("wait --for=jsonpath={.status.phase}=Pending pod/lonely --timeout=10s", "condition met");
    assert!(master.refused("wait --for=condition=Ready pod/lonely --timeout=1s", "").contains("timed out waiting for the condition"));
    wait_until("the scheduler says why", || master.ok("events --for pod/lonely").contains("no nodes available to schedule pods"));
    assert_eq!(master.ok("logs lonely"), "");
    master.says("describe pod lonely", "kube-api-access-");
    master.says("get pods lonely -o wide", "lonely   0/1     Pending   0");

    // Rights.
    master.says("auth whoami", "kubernetes-admin");
    master.says("auth can-i delete nodes", "yes");
    master.says("auth can-i list pods --as jane", "yes");
    master.says("auth can-i --list --as jane", "selfsubjectaccessreviews.authorization.k8s.io");
    assert!(master.run(&["auth", "can-i", "delete", "pods", "--as", "jane"], "").status.code() == Some(1));
    let refused = master.refused("delete pod lonely --as jane", "");
    assert!(refused.contains("User \"jane\" cannot delete resource \"pods\" in API group \"\" in the namespace \"default\""), "{refused}");

    // The end of things.
    master.says("delete pod lonely", "pod \"lonely\" deleted");
    master.says("delete deployment web --cascade=foreground --timeout=30s", "deployment.apps \"web\" deleted");
    master.says("delete namespace shop --timeout=30s", "namespace \"shop\" deleted");
    assert!(master.pipe("delete -f -", PAGE).contains("deployment.apps \"api\" deleted"));
    assert!(master.refused("delete configmap page", "").contains("Error from server (NotFound): configmaps \"page\" not found"));
    assert!(master.refused("get nothere", "").contains("the server doesn't have a resource type \"nothere\""));
}

#[test]
fn every_verb_of_the_newest_kubectl_works() {
    every_verb("sid");
}

#[test]
fn every_verb_of_an_older_kubectl_works() {
    every_verb("trixie");
}

#[test]
fn a_watch_shows_changes_as_they_happen() {
    let master = Master::new("sid");
    let out = master.folder.join("watch");
    let mut watch = master.command(&["get", "configmaps", "-w", "-o", "name"]).stdout(fs::File::create(&out).unwrap()).spawn().unwrap();
    wait_until("the watch begins", || fs::read_to_string(&out).unwrap().contains("configmap/kube-root-ca.crt"));
    master.ok("create configmap new");
    wait_until("the change shows", || fs::read_to_string(&out).unwrap().contains("configmap/new"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}
