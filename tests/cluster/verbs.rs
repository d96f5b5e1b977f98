//! edgectl beside a real kubectl: each command line runs by both, on the same objects or on twin namespaces, and both must say the same
//! and end with the same code. What differs on purpose is listed here with its reason, and is a failure when it differs no more.
//! Needs root.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use regex_lite::Regex;
use serde_json::Value;

use crate::api::{self, Master};
use crate::lab::{text, wait_until};

/// Where both programs run, and what they are told of the place.
struct Bench {
    master: Option<Master>,
    folder: PathBuf,
    kubectl: String,
    rules: Vec<(Regex, &'static str)>,
    /// The lines change nothing, and so may run again.
    only_reads: bool,
    unlike: Vec<String>,
    lines: usize,
}

/// What one program did.
#[derive(PartialEq)]
struct Told {
    code: Option<i32>,
    out: String,
    error: String,
}

/// What stays of a text when all that must differ is made alike: (pattern, replacement), in this order.
const ALIKE: &[(&str, &str)] = &[
    ("edgectl", "kubectl"),
    ("twin-[ke]", "twin-x"),
    ("(home|config|out)-[ke]\\b", "$1-x"),
    ("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UID"),
    ("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(\\.[0-9]+)?(Z|[+-][0-9:]{5})", "TIME"),
    ("[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} [+-][0-9]{4}", "TIME"),
    ("[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}(\\.[0-9]+)? [+-][0-9]{4}( UTC)?", "TIME"),
    ("(LIVE|MERGED)-[0-9a-f]+", "$1"),
    ("\\bg-[a-z0-9]{5}\\b", "g-RANDOM"),
    ("(kube-api-access)-[a-z0-9]{5}", "$1-RANDOM"),
    ("W[0-9]{4} [0-9:.]+ +[0-9]+ ", ""),
    ("(resourceVersion\"?: \"?)[0-9]+", "${1}VERSION"),
    ("\\b[0-9]+(\\.[0-9]+)?(ms|s|m|h)([0-9]+s)?( \\(x[0-9]+ over [0-9a-z]+\\))?(\\s)\\s*", "AGE$5"),
    ("\\bAGE[^\\S\n]+", "AGE "),
    ("\\b(api|web)-[bcdfghjklmnpqrstvwxz2456789]{8,10}\\b", "$1-HASH"),
    ("-HASH-[bcdfghjklmnpqrstvwxz2456789]{5}\\b", "-HASH-RANDOM"),
    ("\\b10\\.96\\.[0-9]+\\.[0-9]+ *", "ADDRESS "),
    ("eyJ[A-Za-z0-9_.-]{60,}", "TOKEN"),
];

impl Bench {
    /// Writes the files that command lines name.
    fn new(master: Option<Master>, folder: PathBuf, kubectl: String, kubeconfig: &str) -> Self {
        for (name, content) in FILES {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        for twin in ["k", "e"] {
            fs::create_dir_all(folder.join(format!("home-{twin}"))).unwrap();
            fs::write(folder.join(format!("config-{twin}")), kubeconfig).unwrap();
        }
        let rules = ALIKE.iter().map(|(pattern, text)| (Regex::new(pattern).unwrap(), *text)).collect();
        Self { master, folder, kubectl, rules, only_reads: true, unlike: vec![], lines: 0 }
    }

    /// Runs a line of the shell, in which `k` is the program and `$T` the twin's letter.
    fn run(&self, twin: &str, line: &str) -> Told {
        let mut command = match &self.master {
            Some(master) => master.inside(),
            None => Command::new("env"),
        };
        let program = if twin == "k" { &self.kubectl } else { env!("CARGO_BIN_EXE_edgectl") };
        let script = format!("k() {{ timeout 20 \"$PROGRAM\" \"$@\"; }}; k {line}");
        command.args(["sh", "-c", &script]).env("PROGRAM", program).env("T", twin);
        command.env("KUBECONFIG", self.folder.join(format!("config-{twin}"))).env("HOME", self.folder.join(format!("home-{twin}")));
        command.env("EDITOR", "sed -i s/hello/edited/").env_remove("KUBE_EDITOR").env("LC_ALL", "C").env("TZ", "UTC");
        let output = command.current_dir(&self.folder).stdin(Stdio::null()).output().unwrap();
        Told { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) }
    }

    /// Runs a line by both programs at once.
    fn both(&self, line: &str) -> [Told; 2] {
        thread::scope(|scope| {
            let kubectl = scope.spawn(|| self.run("k", line));
            let edgectl = self.run("e", line);
            [kubectl.join().unwrap(), edgectl]
        })
    }

    fn alike(&self, told: &Told) -> Told {
        let mut texts = [told.out.clone(), told.error.clone()];
        for text in &mut texts {
            for (pattern, with) in &self.rules {
                *text = pattern.replace_all(text, *with).into_owned();
            }
        }
        let [mut out, error] = texts;
        // The order of an object's keys means nothing; kubectl has that of Go's structs for some.
        if out.starts_with('{')
            && let Ok(value) = serde_json::from_str::<Value>(&out)
        {
            out = format!("{value:#}\n");
        }
        Told { code: told.code, out, error }
    }

    /// Runs the lines in their order, those of `otherwise` that are not among them last. Both programs must do the same; where
    /// edgectl differs on purpose, it ends with the code and says the text given.
    fn run_all(&mut self, lines: &[&'static str], otherwise: &[(&'static str, i32, &str, &str)]) {
        let more = otherwise.iter().map(|(line, ..)| *line).filter(|line| !lines.contains(line));
        for line in lines.iter().copied().chain(more) {
            self.lines += 1;
            let mut both = self.both(line);
            let mut alike = [&both[0], &both[1]].map(|told| self.alike(told));
            if self.only_reads && alike[0] != alike[1] {
                // What is read moves: a difference must show twice.
                both = self.both(line);
                alike = [&both[0], &both[1]].map(|told| self.alike(told));
            }
            let [kubectl, edgectl] = alike;
            let same = kubectl == edgectl;
            let problem = match otherwise.iter().find(|(known, ..)| *known == line) {
                None if same => continue,
                None => "differs".to_owned(),
                Some((.., reason)) if same => format!("is the same, though it is listed as different: {reason}"),
                Some((_, code, says, _)) => {
                    let all = format!("{}{}", both[1].out, both[1].error);
                    if edgectl.code == Some(*code) && all.contains(says) {
                        continue;
                    }
                    format!("does not end with {code}, or does not say {says:?}")
                }
            };
            let difference = self.difference(&kubectl, &edgectl);
            self.unlike.push(format!("k {line}: {problem}\n{difference}"));
        }
    }

    fn difference(&self, kubectl: &Told, edgectl: &Told) -> String {
        let paths = [("kubectl", kubectl), ("edgectl", edgectl)].map(|(name, told)| {
            let path = self.folder.join(format!("told-{name}"));
            fs::write(&path, format!("{}\n[stderr]\n{}\n[exit code {:?}]\n", told.out, told.error, told.code)).unwrap();
            path
        });
        text(&Command::new("diff").arg("-U1").args(paths).output().unwrap().stdout)
    }

    fn end(self) {
        let unlike = &self.unlike;
        assert!(unlike.is_empty(), "{} of {} lines differ:\n{}", unlike.len(), self.lines, unlike.join("\n"));
    }
}

const FILES: &[(&str, &str)] = &[
    ("shop.yaml", include_str!("verbs/shop.yaml")),
    (
        "page.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page, labels: {tier: front}}\ndata: {index: hello}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api, labels: {app: api}}\nspec:\n  replicas: 1\n  selector: {matchLabels: \
         {app: api}}\n  template:\n    metadata: {labels: {app: api}}\n    spec:\n      containers:\n      - {name: c, image: busybox}\n",
    ),
    (
        "page2.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page, labels: {tier: back}}\ndata: {other: '<hello> & more'}\n---\n\
         apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: api, labels: {app: api}}\nspec:\n  replicas: 2\n  selector: {matchLabels: \
         {app: api}}\n  template:\n    metadata: {labels: {app: api}}\n    spec:\n      containers:\n      - {name: c, image: nginx}\n      - \
         {name: d, image: busybox, env: [{name: A, value: b}]}\n",
    ),
    ("set/a.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, labels: {set: one}}\ndata: {a: '1'}\n"),
    (
        "set/b.json",
        "{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"b\",\"labels\":{\"set\":\"one\"}},\"data\":{\"b\":\"2\"}}",
    ),
    ("set/deep/c.yml", "apiVersion: v1\nkind: Secret\nmetadata: {name: c, labels: {set: one}}\nstringData: {c: '3'}\n"),
    ("set/read.me", "not a manifest"),
    (
        "list.yaml",
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: l1}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: l2}}\n",
    ),
    ("generated.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: g-}\n"),
    ("tabs.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n"),
    ("nokind.yaml", "apiVersion: v1\nmetadata: {name: a}\n"),
    ("noversion.yaml", "kind: Pod\nmetadata: {name: a}\n"),
    ("unknownkind.yaml", "apiVersion: v1\nkind: Podd\nmetadata: {name: a}\n"),
    ("noname.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {}\ndata: {a: b}\n"),
    ("empty.yaml", "# nothing\n"),
    ("elsewhere.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: kube-system}\n"),
    (
        "misspelt.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: misspelt}\nspec:\n  restartPolocy: Never\n  containers: [{name: c, image: busybox}]\n",
    ),
    ("twice.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: twice}\ndata: {a: b}\ndata: {c: d}\n"),
    ("wrongtype.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: w}\nspec:\n  containers: nginx\n"),
    ("invalid.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\nspec:\n  containers: [{name: c}]\n"),
    ("columns", "NAME WHERE\n.metadata.name .metadata.namespace\n"),
    ("template", "{range .items[*]}{.metadata.name}{\"\\n\"}{end}"),
    ("gotemplate", "{{range .items}}{{.metadata.name}}{{\"\\n\"}}{{end}}"),
    ("secret.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: c, labels: {set: one}}\nstringData: {c: '4', d: '5'}\n"),
    ("env", "# colours\nRED=1\n\nBLUE=two words\nNONE=\n"),
    ("patch.yaml", "data:\n  patched: 'yes'\n"),
    ("text", "one\ntwo\n"),
];

/// What only reads, in the namespace of shop.yaml.
const READING: &[&str] = &[
    "api-versions",
    "api-resources",
    "api-resources --namespaced=false",
    "api-resources --api-group=apps -o wide",
    "api-resources -o name --verbs=list,create --sort-by=name",
    "api-resources --no-headers --categories=all",
    "cluster-info",
    "get pods",
    "get pod",
    "get po -o wide",
    "get pods -owide --no-headers",
    "get pods,services",
    "get deploy,rs,sts,ds,job,cronjob",
    "get deploy,rs,sts,ds,job,cronjob -o wide",
    "get all",
    "get all -o name",
    "get all -A --no-headers",
    "get cm,secret,sa,ing,netpol,pvc,pv,sc,quota,limits,pdb,hpa,pc",
    "get role,rolebinding,node,ns,ep,endpointslices,leases",
    "get clusterrole view",
    "get node -o wide",
    "get pods -A",
    "get pods --all-namespaces -o wide",
    "get pods -l app=lonely",
    "get pods -l 'app in (lonely,plain),tier!=back'",
    "get pods -lapp=nothing",
    "get pods --selector='!tier'",
    "get pods --field-selector=metadata.name=plain",
    "get pods --field-selector=status.phase!=Pending",
    "get pods --field-selector=spec.nosuch=1",
    "get pods -l 'a=b=c'",
    "get pods -L app,tier",
    "get pods -L app -L tier",
    "get pods --show-labels",
    "get pods --show-kind",
    "get deploy web --show-labels --show-kind",
    "get deployments.apps web",
    "get deployments.v1.apps web",
    "get deployment/web",
    "get deployment/web service/web",
    "get deploy web rs",
    "get rs/rs pod/plain cm/page -o name",
    "get cm -o name",
    "get cm page -o name",
    "get cm page -o yaml",
    "get cm page -o json",
    "get cm -o yaml",
    "get cm,sa -o json",
    "get cm page bare -o yaml",
    "get cm page bare -o name",
    "get deploy web -o yaml",
    "get deploy web -ojson",
    "get deploy web -o yaml --show-managed-fields",
    "get secret keys -o yaml",
    "get svc web -o json",
    "get pod plain -o yaml",
    "get node board-9 -o yaml",
    "get cm page -o jsonpath='{.data.short}'",
    "get cm page -o jsonpath='{.data}'",
    "get cm page -o jsonpath='{.data.index\\.html}'",
    "get cm page -o 'jsonpath={.metadata.labels}{\"\\n\"}'",
    "get cm page -o jsonpath={.nosuch}",
    "get cm page -o jsonpath='{.metadata.name'",
    "get pods -o jsonpath='{range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}'",
    "get pods -o jsonpath='{.items[?(@.metadata.name==\"plain\")].spec.containers[*].name}'",
    "get pods -o jsonpath='{..image}' | tr ' ' '\\n' | sort",
    "get pods -o jsonpath-as-json='{.items[*].metadata.name}'",
    "get pods -o jsonpath-file=template",
    "get pods -o jsonpath --template='{.kind}'",
    "get pods -o go-template='{{range .items}}{{.metadata.name}}{{\"\n\"}}{{end}}'",
    "get pods -o go-template-file=gotemplate",
    "get pods -o templatefile=gotemplate",
    "get pods -o go-template --template='{{.kind}} {{len .items}}'",
    "get pods --template='{{(index .items 0).metadata.name}}'",
    "get cm page -o template='{{.data}} {{.metadata.labels}} {{.nosuch}} {{.nosuch.deeper}}'",
    "get cm page -o go-template='{{.metadata}}'",
    "get secret keys -o go-template='{{index .data \"password\" | base64decode}}'",
    "get secret keys -o go-template='{{range $k, $v := .data}}{{printf \"%s=%q\\n\" $k ($v | base64decode)}}{{end}}'",
    "get cm page -o go-template='{{index .data \"index.html\"}}{{.binaryData.bin | base64decode}}' | od -c",
    "get cm page -o go-template='{{range $k, $v := .metadata.labels}}{{$k}}={{$v}} {{end}}'",
    "get deploy web -o go-template='{{.spec.replicas}} {{.metadata.generation}} {{printf \"%v %T %d %03d\" .spec.replicas .spec.replicas .spec.replicas .spec.replicas}}'",
    "get deploy web -o go-template='{{printf \"%s|%-10s|%10s|%q|%v|%.2s|%x\" .kind .kind .kind .kind .spec.selector .kind .kind}}'",
    "get deploy web -o go-template='{{printf \"%d %s %z\" .kind .spec.replicas 1}} {{printf \"%d\"}} {{printf \"a\" 1 nil}}'",
    "get deploy web -o go-template='{{.spec.template.spec.containers}} {{printf \"%T %T\" .spec .spec.template.spec.containers}}'",
    "get deploy web -o go-template='{{if eq .kind \"Pod\"}}pod{{else if gt .spec.replicas 1}}many{{else}}one{{end}}'",
    "get deploy web -o go-template='{{if and (eq .spec.replicas 2) .metadata.labels (not .nosuch)}}yes{{end}} {{or .nosuch \"no\"}}'",
    "get deploy web -o go-template='{{range $i, $c := .spec.template.spec.containers}}{{if $i}}, {{end}}{{$c.name}}:{{len $c.image}}{{end}}'",
    "get deploy web -o go-template='{{with .spec.template.spec}}{{.serviceAccountName}} {{$.kind}}{{end}}{{with .nosuch}}a{{else}}b{{end}}'",
    "get pods -o go-template='{{range .items -}} {{- if eq .metadata.name \"plain\"}}{{continue}}{{end -}} {{.metadata.name}}, {{- /* end */ -}} {{end}}'",
    "get pods -o go-template='{{$n := 0}}{{range $i, $_ := .items}}{{$n = $i}}{{end}}{{$n}} {{range .none}}{{else}}none{{end}}'",
    "get pods -o go-template='{{define \"p\"}}<{{.metadata.name}}>{{end}}{{range .items}}{{template \"p\" .}}{{end}}{{block \"b\" .kind}}{{.}}{{end}}'",
    "get cm page -o go-template='{{eq .kind \"a\" \"ConfigMap\"}} {{ne 1 2}} {{lt 1.5 2.5}} {{le \"a\" \"b\"}} {{ge 2 2}} {{slice .kind 0 6}} {{index .kind 0}}'",
    "get cm page -o go-template='{{print 1 2 \"a\" 3}} {{println .kind}}{{html \"<&>\"}} {{js \"<&>\"}} {{urlquery \"a b&c\"}} {{1e6}} {{1.50}} {{0x1F}} {{`raw`}}'",
    "get cm page -o go-template='{{exists . \"metadata\" \"name\"}} {{exists .data \"nosuch\"}}'",
    "get deploy web -o name --template='{{.kind}}'",
    "get cm page -w --request-timeout=2s -o go-template='{{.metadata.name}}{{\"\\n\"}}'",
    "get events --field-selector=involvedObject.name=none -o go-template='{{len .items}}'",
    "config view -o go-template='{{range .contexts}}{{.name}}{{end}}'",
    "auth whoami -o go-template --template='{{.kind}}'",
    "auth whoami -o go-template='{{.status.userInfo.username}}'",
    "rollout history deploy/web -o go-template='{{.kind}}'",
    "explain pods --template=x",
    "get pods -o go-template",
    "get pods -o go-template=",
    "get pods -o go-template-file",
    "get pods -o go-template-file=nosuch",
    "get pods -o go-template='{{.kind'",
    "get pods -o go-template='{{if .kind}}'",
    "get pods -o go-template='{{nosuch}}'",
    "get pods -o go-template='{{$x}}'",
    "get pods -o go-template='{{end}}'",
    "get cm page -o go-template='{{.kind.x}}' 2>&1 >/dev/null",
    "get cm page -o go-template='{{index .nosuch 1}}' 2>&1 >/dev/null",
    "get cm page -o go-template='{{range .kind}}{{end}}' 2>&1 >/dev/null",
    "get cm page -o go-template='{{.data | base64decode}}' 2>&1 >/dev/null",
    "get cm page -o go-template='{{eq .kind 1}}' 2>&1 >/dev/null",
    "get cm page -o go-template='{{template \"nosuch\"}}' 2>&1 >/dev/null",
    "get cm page -o jsonpath={.metadata.managedFields[*].manager}",
    "get pods -o custom-columns=NAME:.metadata.name,IMAGES:.spec.containers[*].image,NODE:.spec.nodeName",
    "get pods -o custom-columns=NAME:metadata.name --no-headers",
    "get pods -o custom-columns-file=columns",
    "get pods -o custom-columns=NAME",
    "get pods -o custom-columns",
    "get pods -o nosuch",
    "get pods -o jsonpath",
    "get pods --sort-by=.metadata.name",
    "get pods --sort-by=metadata.creationTimestamp -o name",
    "get pods --sort-by='{.spec.containers[0].image}' -o name",
    "get events --field-selector=involvedObject.name=plain",
    "get pods -f shop.yaml",
    "get -f shop.yaml",
    "get -f shop.yaml -o name",
    "get -f set",
    "get -R -f set --ignore-not-found",
    "get cm nosuch",
    "get cm nosuch --ignore-not-found",
    "get cm page nosuch",
    "get cm page nosuch -o json",
    "get cm nosuch -o yaml",
    "get nosuch",
    "get nosuch page",
    "get pods/",
    "get /plain",
    "get pods/plain/x",
    "get pods po/plain",
    "get po/plain pods",
    "get",
    "get pods --nosuch",
    "get pods -Z",
    "get pods -o",
    "get pods --chunk-size=x",
    "get pods -n nosuch",
    "get cm page -nnosuch",
    "get pods plain -A",
    "get pods plain -l a=b",
    "get pods --watch=maybe",
    "get pods -w --request-timeout=2s",
    "get pods,cm -w",
    "get cm page -w --request-timeout=2s -o name",
    "get cm page --watch-only --request-timeout=2s",
    "get cm page -w --output-watch-events --request-timeout=2s",
    "get --raw /version",
    "get --raw /api/v1/namespaces/default",
    "get deploy web --subresource=scale",
    "get deploy web --subresource=status -o name",
    "get deploy web --subresource=nosuch",
    "get pods --server-print=false",
    "get pods -v=0 -o name",
    "get customresourcedefinitions",
    "get crd nosuch",
    "describe cm page",
    "describe cm",
    "describe secret keys",
    "describe sa robot",
    "describe svc web",
    "describe svc headless away",
    "describe deploy web",
    "describe deploy/web rs/rs",
    "describe rs rs",
    "describe pod lonely",
    "describe pod plain",
    "describe pods -l app=web",
    "describe pod pl",
    "describe sts db",
    "describe ds everywhere",
    "describe job once",
    "describe cronjob often",
    "describe ingress front",
    "describe netpol closed",
    "describe pv vol",
    "describe pvc disk",
    "describe sc slow",
    "describe pc high",
    "describe role reader",
    "describe rolebinding readers",
    "describe clusterrole view",
    "describe quota quota",
    "describe limits limits",
    "describe pdb budget",
    "describe hpa scaler",
    "describe node board-9",
    "describe ns default",
    "describe ns twin-x",
    "describe ep kubernetes -n default",
    "describe lease -n kube-system",
    "describe pod nosuch",
    "describe nosuch",
    "describe",
    "describe cm page --show-events=false",
    "events --for pod/plain",
    "events --types=Warning --for pod/lonely --no-headers",
    "events -n default --for pod/none",
    "events --types=Nosuch",
    "explain pods",
    "explain deployment.spec.replicas",
    "explain pod.spec.containers.resources",
    "explain pod.spec.nosuch",
    "explain",
    "explain cronjob --recursive",
    "explain cm --api-version=v1",
    "auth can-i create pods",
    "auth can-i delete nodes --as jane",
    "auth can-i list pods --as=jane -q",
    "auth can-i get pods/log",
    "auth can-i get /healthz",
    "auth can-i list deploy/web",
    "auth can-i list nosuch",
    "auth can-i",
    "auth can-i --list",
    "auth can-i --list --as system:serviceaccount:shop:robot --no-headers",
    "auth whoami",
    "auth whoami -o json",
    "auth whoami --as jane --as-group a --as-group b",
    "rollout status deploy/web --timeout=1s",
    "rollout status deploy/web --watch=false",
    "rollout status cm/page",
    "rollout history deploy/web",
    "rollout history deploy/web --revision=1",
    "rollout history deploy/web --revision=7",
    "rollout history deploy",
    "wait --for=condition=Available deploy/web --timeout=1s",
    "wait --for=condition=Progressing=True deploy/web --timeout=1s",
    "wait --for=jsonpath='{.status.phase}'=Pending pod/plain",
    "wait --for=jsonpath='{.metadata.name}' pod/plain",
    "wait --for=create pod/plain",
    "wait --for=delete pod/plain --timeout=1s",
    "wait --for=delete pod/nosuch",
    "wait --for=condition=Ready pod/nosuch --timeout=1s",
    "wait --for=condition=Ready pods --all --timeout=1s",
    "wait --for=condition=Ready pods -l app=nothing --timeout=1s",
    "wait --for=nosuch pod/plain",
    "wait --for=condition=Ready",
    "logs plain",
    "logs plain -c d",
    "logs plain -c nosuch",
    "logs nosuch",
    "logs deploy/web",
    "logs -l app=nothing",
    "logs",
    "logs plain d",
    "logs plain --since=5m --since-time=2020-01-01T00:00:00Z",
    "logs plain --since=x",
    "logs plain --all-containers -c d",
    "logs plain --tail=x",
    "diff -f shop.yaml",
    "diff -f page2.yaml",
    "diff -f nosuch.yaml",
    "diff -f misspelt.yaml",
    "diff",
    "config view",
    "config view --minify -o jsonpath='{.contexts[0].name}'",
    "config view -o json",
    "config view --raw -o jsonpath='{.clusters[0].name}'",
    "config current-context",
    "config get-contexts",
    "config get-contexts -o name",
    "config get-contexts nosuch",
    "config get-clusters",
    "config get-users",
    "config use-context nosuch",
    "config nosuch",
    "get pods --kubeconfig=nosuch",
    "get pods --request-timeout=x",
    "get pods --as=jane",
    "get pods --token=nosuch",
    "rollout nosuch",
    "completion",
    "version --client=false -o nosuch",
    "options --nosuch",
    "scale deploy/web",
    "label pod plain",
    "cordon",
    "drain",
    "taint node",
];

/// Where edgectl differs on purpose: the line, its exit code, what it says, and why.
const READING_OTHERWISE: &[(&str, i32, &str, &str)] = &[
    (
        "get pods -o jsonpath='{.items[0].metadata.name} {.items[-1:].kind} {.items[5].kind}'",
        1,
        "array index out of bounds: index 5, length 5",
        "the whole object is not dumped behind the error",
    ),
    ("get deploy,rs --sort-by=.metadata.name", 0, "replicaset.apps/rs", "each table is sorted; kubectl cannot sort several kinds"),
    ("get cm --sort-by=.nosuch", 0, "kube-root-ca.crt", "a path that no object has sorts nothing; kubectl says that there are no objects"),
    ("get --raw /nosuch", 1, "404 page not found", "what the server answered is shown"),
    ("events --for nosuch/plain", 1, "error: the server doesn't have a resource type \"nosuch\"", "every error begins with error:"),
    ("explain nosuch", 1, "error: the server doesn't have a resource type \"nosuch\"", "every error begins with error:"),
    ("rollout history cm/page", 1, "no history viewer has been implemented for \"ConfigMap\"", "kubectl speaks of visitors"),
    ("wait pod/plain", 1, "--for must be specified", "kubectl names an empty condition"),
    ("logs cm/page", 1, "configmaps/page selects no pods", "kubectl names a type of Go"),
    ("config use-context", 1, "Usage: edgectl config use-context CONTEXT_NAME", "kubectl prints the whole help"),
    ("get pods --context=nosuch", 1, "context \"nosuch\" does not exist", "the three kinds of entries are told alike"),
    ("get pods --user=nosuch", 1, "user \"nosuch\" does not exist", "the three kinds of entries are told alike"),
    ("get pods --cluster=nosuch", 1, "cluster \"nosuch\" does not exist", "the three kinds of entries are told alike"),
    ("get pods --server=https://192.0.2.1:1", 1, "`edgectl up` starts one", "kubectl logs each try and does not say what to do"),
    ("nosuch", 1, "Run 'edgectl help' for usage.", "kubectl does not say what to do"),
    ("gett pods", 1, "Did you mean this?\n\tget", "the likely one alone is named"),
    ("rollout", 0, "Show the status of the rollout", "the help is shorter"),
    ("create nosuch x", 1, "unknown thing to create: \"nosuch\"", "kubectl lists the words"),
    ("set", 0, "Update environment variables on a pod template", "the help is shorter"),
    ("completion nosuch", 1, "there is no completion for \"nosuch\", only for bash", "the shells differ"),
    ("version", 0, "Server Version: v1.36.0+edgectl", "each has a version of its own"),
    (
        "get cm page -o go-template='{{.metadata.name}} {{.kind.x}}'",
        1,
        "at <.kind.x>: can't evaluate field x in type interface {}",
        "neither what was printed so far nor the whole object is dumped before the error",
    ),
    ("get cm page -o go-template='{{call .kind}}'", 1, "function \"call\" not defined", "no value is a function, and so there is no call"),
    ("get pods -o kyaml", 1, "not supported", "YAML in another style"),
];

#[test]
fn edgectl_reads_as_kubectl_does() {
    let mut bench = alone("reads");
    for line in ["create namespace shop", "apply -n shop -f shop.yaml"] {
        let told = bench.run("k", line);
        assert_eq!(told.code, Some(0), "{line}: {}{}", told.out, told.error);
    }
    bench.both("config set-context --current --namespace=shop");
    let ready = || bench.run("k", "get rs,deploy,pods -o jsonpath='{.items[*].status}'").out.matches("Unschedulable").count() == 5;
    wait_until("the pods wait for a node", ready);
    bench.run_all(READING, READING_OTHERWISE);
    bench.end();
}

/// What changes objects: each program in a namespace of its own, twin-k or twin-e, and with cluster-wide objects of its own.
const WRITING: &[&str] = &[
    // Everything that has a generator, as it would be made.
    "create deployment d --image=nginx --dry-run=client -o yaml",
    "create deployment d --image=a/b:c --image=d@sha256:1 --replicas=3 --port=80 --dry-run=client -o yaml",
    "create deployment d --image=busybox --dry-run=client -o json -- sleep 100",
    "create deploy d --image=nginx --dry-run=server -o name",
    "create deploy d --image=nginx --dry-run=nosuch",
    "create deployment d",
    "create deployment --image=x",
    "create deployment d e --image=x",
    "create deployment d --image=nginx -r x",
    "create deployment d --image=nginx --dry-run=client --template='{{.kind}} {{.spec.replicas}}'",
    "create deployment d --image=nginx --dry-run=client -o go-template --template='{{.metadata.name}}'",
    "create deployment d --image=nginx --dry-run=server -o jsonpath --template='{.metadata.name}'",
    "create deployment d --image=nginx --dry-run=client -o name --template='{{.kind}}'",
    "create job j --image=busybox --dry-run=client -o yaml -- date",
    "create job j --dry-run=client",
    "create cronjob c --image=busybox --schedule='*/1 * * * *' --dry-run=client -o yaml -- date -u",
    "create cj c --image=busybox --schedule=x --restart=Never --dry-run=client -o yaml",
    "create cronjob c --image=busybox",
    "create ns twin-x --dry-run=client -o yaml",
    "create configmap c --from-literal=a=b --from-literal=c='d e' --dry-run=client -o yaml",
    "create cm c --from-file=text --from-file=other=env --from-env-file=env --dry-run=client -o yaml",
    "create cm c --from-file=set --dry-run=client -o yaml",
    "create cm c --from-file=nosuch --dry-run=client -o yaml",
    "create cm c --from-literal=a --dry-run=client",
    "create cm c --from-literal=a=b --from-literal=a=c --dry-run=client",
    "create cm --from-literal=a=b",
    "create secret generic s --from-literal=p=q --type=Opaque --dry-run=client -o yaml",
    "create secret generic s --from-env-file=env --dry-run=client -o json",
    "create secret docker-registry r --docker-username=u --docker-password=p --docker-email=e@f --dry-run=client -o yaml",
    "create secret docker-registry r --docker-username=u --dry-run=client -o yaml",
    "create secret tls t --cert=text --key=text --dry-run=client -o yaml",
    "create secret tls t --cert=nosuch --key=text",
    "create service clusterip s --tcp=80:8080 --tcp=443 --dry-run=client -o yaml",
    "create service clusterip s --clusterip=None --dry-run=client -o yaml",
    "create svc nodeport s --tcp=80 --node-port=30099 --dry-run=client -o yaml",
    "create svc loadbalancer s --tcp=80:http --dry-run=client -o yaml",
    "create svc externalname s --external-name=a.example --dry-run=client -o yaml",
    "create svc nodeport s --tcp=x --dry-run=client",
    "create sa robot --dry-run=client -o yaml",
    "create role r --verb=get,list --verb=watch --resource=pods,deployments.apps/scale --resource-name=a --dry-run=client -o yaml",
    "create role r --verb=get",
    "create role r --resource=pods --dry-run=client",
    "create role r --verb=get --resource=nosuch --dry-run=client",
    "create role r --verb=nosuch --resource=pods --dry-run=client -o yaml",
    "create clusterrole r --verb=get --resource=nodes --dry-run=client -o yaml",
    "create clusterrole r --verb=get --non-resource-url=/logs/* --dry-run=client -o yaml",
    "create clusterrole r --aggregation-rule=a=b --dry-run=client -o yaml",
    "create rolebinding b --role=r --user=u --group=g --serviceaccount=ns:robot --dry-run=client -o yaml",
    "create rolebinding b --clusterrole=view --user=u --user=v --dry-run=client -o yaml",
    "create rolebinding b --user=u",
    "create rolebinding b --role=r --serviceaccount=x --dry-run=client",
    "create clusterrolebinding b --clusterrole=view --user=u --dry-run=client -o yaml",
    "create ingress i --rule='a.example/x*=web:80' --rule='b.example/=web:http,tls=keys' --class=nginx --dry-run=client -o yaml",
    "create ing i --default-backend=web:80 --annotation=a=b --rule=/y=web:1 --dry-run=client -o yaml",
    "create ingress i --rule=nosuch --dry-run=client",
    "create ingress i",
    "create quota q --hard=cpu=1,pods=2 --scopes=BestEffort --dry-run=client -o yaml",
    "create quota q --hard=x --dry-run=client",
    "create pdb p --selector=app=web --min-available=50% --dry-run=client -o yaml",
    "create pdb p --selector=app=web --max-unavailable=1 --min-available=1 --dry-run=client",
    "create pdb p --selector=app=web",
    "create priorityclass p --value=10 --global-default=true --description=d --preemption-policy=Never --dry-run=client -o yaml",
    "create pc p --dry-run=client -o yaml",
    "create token robot --duration=1m",
    "create token",
    "run p --image=busybox --dry-run=client -o yaml",
    "run p --image=busybox --env=A=b --labels=x=y,z=w --port=80 --restart=Never --dry-run=client -o yaml -- sleep 1",
    "run p --image=busybox --command --dry-run=client -o yaml -- sleep 1",
    "run p",
    "run p --image=busybox --restart=nosuch",
    "run p --image=busybox --env=A",
    "run p --image=busybox --dry-run=client -o yaml --overrides='{\"spec\":{\"nodeName\":\"a\",\"restartPolicy\":null}}'",
    // Made for good.
    "create deployment web --image=nginx --replicas=2",
    "create deployment web --image=nginx",
    "create cm settings --from-literal=a=b",
    "create cm settings --from-literal=a=b",
    "create sa robot",
    "create token robot",
    "create job once --image=busybox -- true",
    "create cronjob often --image=busybox --schedule=@hourly -- true",
    "create job manual --from=cronjob/often --dry-run=client -o name",
    "create job manual --from=cronjob/nosuch",
    "create service clusterip web --tcp=80:8080",
    "create service clusterip WEB --tcp=80",
    "create ingress ing --rule='a.b/x*=web:80'",
    "create quota q --hard=pods=100",
    "create pdb pdb --selector=app=web --min-available=1",
    "create pc $(echo twin-$T) --value=10",
    "create clusterrole twin-$T --verb=get --resource=nodes",
    "create clusterrolebinding twin-$T --clusterrole=view --user=jane",
    "run lonely --image=busybox --labels=app=lonely -- sleep 1",
    "run lonely --image=busybox",
    "expose deployment web --port=80 --name=exposed",
    "expose deployment web --port=80 --target-port=http --type=NodePort --dry-run=client -o yaml",
    "expose deployment web",
    "expose cm settings --port=80",
    "autoscale deployment web --min=1 --max=5 --cpu=80%",
    "autoscale deployment web --max=5 --dry-run=client -o yaml",
    "create -f page.yaml --dry-run=client",
    "create -f page.yaml --dry-run=server -o name",
    "create -f set -R",
    "create -f set -R",
    "create -f list.yaml -o name",
    "create -f list.yaml --dry-run=server -o name",
    "create -f generated.yaml -o jsonpath='{.metadata.generateName}'",
    "create -f set/b.json --save-config --dry-run=client -o yaml",
    "create",
    // Manifests.
    "apply -f page.yaml --dry-run=client",
    "apply -f page.yaml --dry-run=client -o yaml",
    "apply -f page.yaml --dry-run=server",
    "apply -f page.yaml",
    "apply -f page.yaml",
    "apply -f page.yaml -o name",
    "apply -f page2.yaml --dry-run=server",
    "diff -f page2.yaml | grep '^[-+] ' | grep -v ' generation:'",
    "diff -f page.yaml",
    "apply -f - < page2.yaml",
    "get deploy api -o jsonpath='{.spec.template.spec.containers[*].image} {.metadata.annotations}'",
    "get cm page -o yaml",
    "apply view-last-applied cm page",
    "apply -f page.yaml -o yaml",
    "apply -f set",
    "apply -R -f set",
    "diff -f set/deep/c.yml",
    "diff -f secret.yaml",
    "diff --show-secrets -f secret.yaml",
    "apply -R -f set -l set=two",
    "apply -f set/a.yaml -f set/b.json",
    "apply -f set/a.yaml,set/b.json",
    "apply -f list.yaml",
    "apply -f list.yaml --dry-run=server",
    "apply --server-side -f set/a.yaml",
    "apply --server-side -f page2.yaml",
    "apply --server-side --field-manager=other -f page.yaml",
    "apply --server-side --field-manager=other --force-conflicts -f page.yaml",
    "apply --server-side --dry-run=client -f page.yaml",
    "apply --force-conflicts -f page.yaml",
    "apply -f generated.yaml",
    "apply -f tabs.yaml",
    "apply -f nokind.yaml",
    "apply -f noversion.yaml",
    "apply -f unknownkind.yaml",
    "apply -f noname.yaml",
    "apply -f empty.yaml",
    "apply -f elsewhere.yaml --dry-run=server",
    "apply -f elsewhere.yaml -n twin-$T",
    "apply -f misspelt.yaml",
    "apply --validate=warn --dry-run=server -f misspelt.yaml",
    "apply --validate=false --dry-run=server -f misspelt.yaml",
    "apply --validate=nosuch -f misspelt.yaml",
    "apply -f twice.yaml --dry-run=server",
    "apply -f wrongtype.yaml",
    "apply -f invalid.yaml",
    "apply -f nosuch.yaml",
    "apply -f set/deep -n nosuch",
    "apply",
    "apply -f",
    "apply x",
    "apply -f http://192.0.2.1:1/x.yaml",
    "create -f tabs.yaml",
    "create -f noname.yaml",
    "create -f misspelt.yaml",
    "create -f elsewhere.yaml -n twin-$T",
    // What is no more in the manifest goes.
    "apply --prune -l set=one -f set/a.yaml --prune-allowlist=core/v1/ConfigMap",
    "apply --prune -R -f set -l set=one --dry-run=client",
    "apply --prune -l set=one -f set/a.yaml --dry-run=server",
    "apply --prune -l set=one -f set/a.yaml",
    "apply --prune -f set/a.yaml",
    "apply --prune --all -l a=b -f set/a.yaml",
    "apply --prune --all -f set/a.yaml --prune-allowlist=nosuch",
    "apply --prune --all -f set/a.yaml --prune-allowlist=core/v1/Nosuch",
    "get cm,secret -o name",
    // Changes.
    "patch cm page -p '{\"data\":{\"x\":\"y\"}}'",
    "patch cm page -p '{\"data\":{\"x\":\"y\"}}'",
    "patch cm/page --type=merge -p '{\"data\":{\"x\":null}}' -o name",
    "patch cm page --type=json -p '[{\"op\":\"add\",\"path\":\"/data/z\",\"value\":\"1\"}]'",
    "patch cm page --type=json -p '[{\"op\":\"test\",\"path\":\"/data/z\",\"value\":\"2\"}]'",
    "patch cm page --patch-file=patch.yaml --dry-run=server -o jsonpath={.data}",
    "patch cm page --patch-file=patch.yaml --dry-run=client",
    "patch -f set/a.yaml -p '{\"data\":{\"x\":\"y\"}}'",
    "patch cm page -p '{'",
    "patch cm page -p nosuch",
    "patch cm page --type=nosuch -p {}",
    "patch cm page",
    "patch cm nosuch -p '{}'",
    "patch deploy api --subresource=scale --type=merge -p '{\"spec\":{\"replicas\":2}}'",
    "patch deploy api -p '{\"spec\":{\"replicas\":-1}}'",
    "patch deploy api -p '{\"spec\":{\"nosuch\":1}}'",
    "replace -f page.yaml",
    "replace -f page.yaml --dry-run=client",
    "replace -f page.yaml --dry-run=server -o name",
    "replace -f set/b.json --force",
    "replace -f list.yaml --dry-run=server -o name",
    "replace -f misspelt.yaml --validate=false",
    "replace",
    "replace cm page",
    "label cm page tier=back",
    "label cm page tier=front",
    "label cm page tier=front --overwrite",
    "label cm page tier=middle --overwrite x=y -o jsonpath={.metadata.labels}",
    "label cm page x-",
    "label cm page x-",
    "label cm --all all=yes",
    "label cm -l tier=middle picked=yes",
    "label cm page --list | sort",
    "label cm page 'bad key=1'",
    "label cm page a=b --dry-run=client",
    "label cm page a=b --dry-run=server -o yaml --overwrite | grep -c 'a: b'",
    "label cm nosuch a=b",
    "label cm page",
    "label cm page a=b a-",
    "label -f set/a.yaml from=file",
    "annotate cm page note=hi",
    "annotate cm page note=ho",
    "annotate cm page note=ho --overwrite",
    "annotate cm/page note-",
    "annotate cm --all every=one",
    "annotate cm page --list | grep -v last-applied",
    "annotate cm page x",
    "edit cm page",
    "edit cm page -o json",
    "edit cm nosuch",
    "scale deploy api --replicas=3",
    "scale deploy/api deploy/web --replicas=1",
    "scale --replicas=2 --current-replicas=1 deploy web",
    "scale --replicas=2 --current-replicas=7 deploy web",
    "scale deploy --all --replicas=1",
    "scale deploy -l app=web --replicas=2 -o name",
    "scale deploy web --replicas=2 --dry-run=client",
    "scale deploy nosuch --replicas=2",
    "scale deploy web --replicas=-1",
    "scale deploy web --replicas=x",
    "scale cm page --replicas=1",
    "set image deploy/web nginx=nginx:2",
    "set image deploy/web nginx=nginx:2",
    "set image deploy web *=nginx:3 -o jsonpath='{.spec.template.spec.containers[0].image}'",
    "set image deploy/web nosuch=nginx",
    "set image deploy/web nginx",
    "set image deploy/web",
    "set image deploy --all nginx=x --dry-run=client",
    "set image cm/page c=d",
    "set image -f page.yaml c=x --local -o name",
    "set env deploy/web A=1 B=2",
    "set env deploy/web --list",
    "set env deploy/web A- -o jsonpath='{.spec.template.spec.containers[0].env}'",
    "set env deploy/web --from=cm/settings --prefix=S_",
    "set env deploy/web --from=cm/settings --keys=nosuch",
    "set env deploy/web -e C=3 D=4",
    "get deploy web -o jsonpath='{.spec.template.spec.containers[0].env}'",
    "set env deploy/web --from=cm/nosuch",
    "set env deploy/web",
    "set env deploy/web A",
    "set resources deploy/web --limits=cpu=200m,memory=512Mi --requests=cpu=100m",
    "set resources deploy/web --limits=cpu=x",
    "set resources deploy/web",
    "set resources deploy/web -c nosuch --limits=cpu=1",
    "set serviceaccount deploy/web robot",
    "set sa deploy web robot",
    "set selector svc web app=other",
    "set subject clusterrolebinding twin-$T --user=joe",
    "rollout restart deploy/web",
    "rollout pause deploy/web",
    "rollout pause deploy/web",
    "rollout undo deploy/web",
    "rollout resume deploy/web",
    "rollout resume deploy/web",
    "rollout history deploy/api",
    "rollout undo deploy/web --to-revision=99",
    "rollout undo deploy/web --dry-run=client",
    "rollout undo deploy/web",
    "rollout undo cm/page",
    "rollout restart cm/page",
    "rollout restart deploy",
    "rollout restart deploy nosuch",
    "rollout status deploy nosuch",
    // Nodes.
    "create -f - <<X\napiVersion: v1\nkind: Node\nmetadata: {name: twin-$T}\nX",
    "cordon twin-$T",
    "cordon node/twin-$T",
    "uncordon twin-$T --dry-run=client",
    "uncordon twin-$T",
    "uncordon twin-$T",
    "cordon nosuch",
    "drain twin-$T --dry-run=client",
    "drain twin-$T",
    "drain nosuch",
    "drain twin-$T --pod-selector=a=b=c",
    "uncordon twin-$T",
    "taint node twin-$T a=b:NoSchedule",
    "taint node twin-$T a=b:NoSchedule",
    "taint node twin-$T a=c:NoSchedule --overwrite",
    "taint nodes twin-$T a:NoSchedule-",
    "taint node twin-$T a-",
    "taint node twin-$T x=y:Nosuch",
    "taint node twin-$T x",
    "taint node nosuch a=b:NoSchedule",
    // The end of things.
    "delete node twin-$T",
    "delete cm l1",
    "delete cm l1",
    "delete cm l1 --ignore-not-found",
    "delete cm/l2 cm/nosuch",
    "delete cm,secret -l set=one",
    "delete cm -l set=none",
    "delete -f set/a.yaml",
    "delete -R -f set --ignore-not-found",
    "delete pod lonely --now",
    "delete pod lonely --grace-period=0 --force",
    "delete pod lonely --now --grace-period=1",
    "delete deploy api --cascade=orphan -o name",
    "delete rs -l app=api --cascade=foreground --wait=false",
    "delete deploy web --cascade=nosuch",
    "delete deploy web --dry-run=client",
    "delete deploy web --dry-run=server",
    "delete deploy web --timeout=30s",
    "delete job,cronjob --all",
    "delete job --all",
    "delete svc web exposed",
    "delete cm page --cascade",
    "delete cm",
    "delete cm --all -l a=b",
    "delete pods --field-selector=metadata.name=nosuch",
    "delete",
    "delete nosuch x",
    "delete -f nosuch.yaml",
    "delete clusterrole,clusterrolebinding,pc twin-$T",
    "delete all --all",
    "config set-context other --namespace=x --cluster=y --user=z",
    "config set-context other --namespace=w",
    "config get-contexts other",
    "config rename-context other renamed",
    "config use-context renamed",
    "config current-context",
    "config delete-context renamed",
    "config use-context edgectl",
    "config set-cluster twin --server=https://192.0.2.1:7",
    "config set-credentials me --token=x",
    "config set-cluster twin --certificate-authority=text --embed-certs",
    "config set-credentials me --client-key=nosuch --embed-certs=true",
    "config set clusters.twin.server https://192.0.2.1:8",
    "config view",
    "config unset users.me",
    "config delete-cluster twin",
    "config delete-user nosuch",
    "delete ns twin-$T --timeout=60s",
];

/// Lines of the table above in which edgectl differs on purpose.
const WRITING_OTHERWISE: &[(&str, i32, &str, &str)] = &[
    ("create secret tls t --cert=text --key=text --dry-run=client -o yaml", 1, "tls: read the private key", "the key is looked at first"),
    (
        "create secret tls t --cert=nosuch --key=text",
        1,
        "error reading nosuch: no such file or directory",
        "files are told of alike by all generators",
    ),
    ("create svc nodeport s --tcp=x --dry-run=client", 1, "invalid port \"x\" in \"x\"", "kubectl names a function of Go"),
    (
        "create role r --verb=get --resource=nosuch --dry-run=client",
        1,
        "error: the server doesn't have a resource type",
        "every error begins with error:",
    ),
    ("apply --server-side --field-manager=other -f page.yaml", 1, "error: Apply failed with 1 conflict", "every error begins with error:"),
    ("apply -f tabs.yaml", 1, "line 4 column 1: a tab indents the line; YAML allows spaces only", "kubectl's parser does not say tab"),
    ("create -f tabs.yaml", 1, "line 4 column 1: a tab indents the line; YAML allows spaces only", "kubectl's parser does not say tab"),
    ("apply -f nokind.yaml", 1, "error parsing nokind.yaml: kind not set", "no advice to turn validation off"),
    ("apply -f noversion.yaml", 1, "error parsing noversion.yaml: apiVersion not set", "no advice to turn validation off"),
    (
        "apply -f noname.yaml",
        1,
        "error when applying \"noname.yaml\": resource name may not be empty",
        "kubectl says what it would have asked for",
    ),
    ("apply -f twice.yaml --dry-run=server", 1, "duplicate field \"data\"", "kubectl takes the last of two equal keys without a word"),
    (
        "apply -f http://192.0.2.1:1/x.yaml",
        1,
        "is not an address of the cluster; download it first",
        "manifests are fetched from the cluster alone",
    ),
    (
        "apply --prune -R -f set -l set=one --dry-run=client",
        0,
        "secret/c pruned (dry run)",
        "kubectl's dry run does not prune what it would",
    ),
    ("apply --prune -l set=one -f set/a.yaml --dry-run=server", 0, "secret/c pruned (server dry run)", "kubectl warns of its future"),
    ("apply --prune -l set=one -f set/a.yaml", 0, "secret/c pruned", "kubectl warns of its future"),
    ("patch cm page --patch-file=patch.yaml --dry-run=client", 0, "configmap/page patched (dry run)", "a dry run says that it is one"),
    ("patch cm page -p '{'", 1, "unable to parse \"{\"", "what is no YAML is not sent"),
    ("replace cm page", 1, "Unexpected args: [cm]", "kubectl does not say what is too much"),
    (
        "run served --image=busybox --port=80 --dry-run=client",
        0,
        "deployment.apps/served created (dry run)",
        "what serves a port goes on when its node does not, unless --restart says that a single pod is meant",
    ),
    ("set image deploy/web nginx", 1, "at least one image update is required", "kubectl takes the word for a resource"),
    ("set image cm/page c=d", 1, "configmaps/page has no pod template", "kubectl names a type of Go"),
    ("set image -f page.yaml c=x --local -o name", 1, "unknown flag: --local", "files are changed by an editor"),
    ("set env deploy/web", 1, "at least one environment variable must be provided", "kubectl does nothing, silently"),
    ("set env deploy/web A", 1, "at least one environment variable must be provided", "kubectl takes the word for a resource"),
    ("rollout undo deploy/web --dry-run=client", 0, "deployment.apps/web rolled back (dry run)", "kubectl prints the pod template"),
    (
        "set env deploy/web --from=cm/settings --keys=nosuch",
        1,
        "at least one environment variable must be provided",
        "kubectl does nothing, silently",
    ),
    (
        "config set-credentials me --client-key=nosuch --embed-certs=true",
        1,
        "could not read client-key data from nosuch",
        "kubectl names a system call",
    ),
    ("rollout undo cm/page", 1, "no history viewer has been implemented for \"ConfigMap\"", "kubectl speaks of visitors"),
];

#[test]
fn edgectl_writes_as_kubectl_does() {
    let mut bench = alone("writes");
    bench.both("create namespace twin-$T");
    bench.both("config set-context --current --namespace=twin-$T");
    bench.only_reads = false;
    bench.run_all(WRITING, WRITING_OTHERWISE);
    bench.end();
}

/// A bench with a master that has no nodes.
fn alone(topic: &str) -> Bench {
    let master = Master::named(topic, "sid");
    let (folder, kubectl) = (master.folder.clone(), master.kubectl.clone());
    let kubeconfig = fs::read_to_string(master.kubeconfig()).unwrap();
    Bench::new(Some(master), folder, kubectl, &kubeconfig)
}

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: two}, annotations: {kubectl.kubernetes.io/default-container: b}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{name: first, image: busybox, imagePullPolicy: Never, command: [echo, from the first]}]
  containers:
  - {name: a, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo a1; echo a2; exec sleep 1000"]}
  - {name: b, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo b1; echo b2; echo b3; exec sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: over, labels: {app: over}}
spec:
  restartPolicy: Never
  containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo gone; exit 3"]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: busybox, imagePullPolicy: Never, command: [sh, -c, "echo hello; exec sleep 1000"]}]
"#;

/// What only reads, on a cluster with pods that run.
const RUNNING: &[&str] = &[
    "get pods",
    "get pods -o wide",
    "get pods --sort-by=.metadata.name --no-headers",
    "get deploy,rs -o wide",
    "get pods --field-selector=status.phase=Running -o name",
    "get pod two -o yaml",
    "get pod over -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode}'",
    "describe pod over",
    "describe pod two",
    "describe deploy web",
    "rollout status deploy/web",
    "rollout status deploy/web --revision=1",
    "rollout history deploy/web",
    "rollout history deploy/web --revision=1",
    "wait --for=condition=Ready pod/two",
    "wait --for=condition=Available deploy/web",
    "wait --for=condition=Ready pods -l app=web",
    "wait --for=jsonpath='{.status.phase}'=Failed pod/over",
    "wait --for=condition=Ready pod/over --timeout=1s",
    "logs two",
    "logs two -c a",
    "logs two a",
    "logs two --all-containers | sort",
    "logs two --all-containers --prefix | sort",
    "logs pod/two -c first",
    "logs two --tail=1",
    "logs two --tail=0",
    "logs two --since=1h",
    "logs two --since-time=2020-01-01T00:00:00Z",
    "logs two --since-time=x",
    "logs two --limit-bytes=4",
    "logs two --timestamps",
    "logs two --previous",
    "logs two -p -c a",
    "logs over",
    "logs over -f",
    "logs deploy/web --tail=5 2>&1 | grep -v Found",
    "logs -l app=web --prefix | sort",
    "logs -l app=web --tail=1",
    "logs -l app=web two",
    "logs two -c a --prefix --timestamps",
    "logs two -f --request-timeout=2s",
    "drain -l nosuch=label",
    "drain $(k get nodes -o jsonpath='{.items[0].metadata.name}') --dry-run=client",
    "drain $(k get nodes -o jsonpath='{.items[0].metadata.name}') --dry-run=client --force",
    "cordon $(k get nodes -o jsonpath='{.items[0].metadata.name}') --dry-run=server",
];

const RUNNING_OTHERWISE: &[(&str, i32, &str, &str)] = &[
    ("logs two --since-time=x", 1, "sinceTime \"x\" is no RFC 3339 time", "kubectl shows how Go writes a time"),
    ("logs two -f --request-timeout=2s", 1, "the log of two/b is not over", "kubectl names a client of Go"),
];

#[test]
fn edgectl_reads_running_pods_as_kubectl_does() {
    let lab = crate::pods::cluster("twins");
    fs::write(lab.file("pods.yaml"), PODS).unwrap();
    lab.ok(&["apply", "-f", &lab.file("pods.yaml").to_string_lossy()]);
    lab.ok(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    lab.ok(&["wait", "--for=condition=Ready", "pod/two", "--timeout=60s"]);
    lab.ok(&["wait", "--for=jsonpath={.status.phase}=Failed", "pod/over", "--timeout=60s"]);
    let kubeconfig = fs::read_to_string(lab.kubeconfig()).unwrap();
    let mut bench = Bench::new(None, lab.file("bench"), api::kubectl("sid"), &kubeconfig);
    bench.run_all(RUNNING, RUNNING_OTHERWISE);
    bench.end();
    // What cannot be done by both, for then there is nothing left to do.
    let said = lab.ok(&["drain", &lab.node(), "--force"]);
    for expected in ["cordoned", "evicting pod default/two", "pod/two evicted", "drained"] {
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(lab.ok(&["get", "pods", "-o", "name", "--field-selector", &format!("spec.nodeName={}", lab.node())]), "");
    lab.end();
}
