//! Lines about names and Services, asked from a pod.

use std::collections::BTreeSet;

use crate::course::{Course, Shell, assert_says, is_ready};
use crate::lab::wait_until;

const CLIENT: &str = r#"apiVersion: v1
kind: Pod
metadata:
  name: client
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: client
    image: curlimages/curl
    command: ["sleep", "3600"]
"#;

const HEADLESS: &str = r#"apiVersion: v1
kind: Service
metadata:
  name: headless
spec:
  clusterIP: None
  selector:
    app: kubernetes-bootcamp
  ports:
  - port: 8080
"#;

fn with_client(shell: &Shell) {
    shell.write("client.yml", CLIENT);
    shell.types("k apply -f client.yml");
    wait_until("the client runs", || is_ready(&shell.get("pod client")));
}

fn addresses(shell: &Shell, selector: &str) -> BTreeSet<String> {
    shell.pods(selector).iter().map(|pod| pod["status"]["podIP"].as_str().unwrap_or_default().to_owned()).collect()
}

pub fn names(course: &Course) {
    course.both(resolve);
}

fn resolve(shell: &Shell) {
    with_client(shell);
    let namespace = shell.namespace;
    for name in [
        "kubernetes-bootcamp".to_owned(),
        format!("kubernetes-bootcamp.{namespace}"),
        format!("kubernetes-bootcamp.{namespace}.svc"),
        format!("kubernetes-bootcamp.{namespace}.svc.cluster.local"),
    ] {
        let said = shell.types(&format!("k exec client -- curl -sS -m 5 http://{name}:8080/"));
        assert_says(&said, &["Hello Kubernetes bootcamp!"]);
    }
    shell.write("headless.yml", HEADLESS);
    shell.types("k apply -f headless.yml");
    let lookup = format!("k exec client -- nslookup -type=a headless.{namespace}.svc.cluster.local");
    let pods = addresses(shell, "app=kubernetes-bootcamp");
    let told = |said: &str| -> BTreeSet<String> {
        let found = said.lines().filter_map(|line| line.strip_prefix("Address: ")).map(str::to_owned);
        found.filter(|address| address.starts_with("10.244.")).collect()
    };
    wait_until("its name has the addresses of its pods", || told(&shell.sees(&lookup)) == pods);
    shell.types(&lookup);
    shell.types("k delete -f headless.yml");
}

const SHOP: &str = r#"apiVersion: v1
kind: Service
metadata:
  name: shop
spec:
  selector:
    app: shop
  ports:
  - port: 80
    targetPort: 8080
"#;

fn shop(number: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: shop-{number}\n  labels:\n    app: shop\nspec:\n  containers:\n  \
         - name: web\n    image: jocatalin/kubernetes-bootcamp:v1\n"
    )
}

/// So many requests that each of three pods is all but certain to be met.
const ASK: &str = "k exec client -- curl -sS -m 5 'http://shop/?[1-60]'";

/// Those pods answer at the Service's name, and nobody else.
fn leads_to(shell: &Shell, pods: &[&str]) {
    let expected = pods.iter().map(|pod| format!("Hello Kubernetes bootcamp! | Running on: {pod} | v=1")).collect::<BTreeSet<_>>();
    let answers = || shell.sees(&format!("{ASK} || true")).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    wait_until(&format!("the Service leads to {pods:?}"), || answers() == expected);
}

pub fn follow(course: &Course) {
    course.both(|shell| {
        with_client(shell);
        shell.write("shop.yml", &format!("{SHOP}{}{}{}", shop(1), shop(2), shop(3)));
        shell.types("k apply -f shop.yml");
        shell.waits_for_pods("app=shop", 3);
        let services = shell.types("k get service shop");
        assert!(
            services.lines().any(|line| line.contains(" ClusterIP ") && line.contains(" 10.96.") && line.contains(" 80/TCP ")),
            "{services}"
        );
        shell.types(ASK);
        leads_to(shell, &["shop-1", "shop-2", "shop-3"]);
        shell.types("k label pod shop-2 app-");
        leads_to(shell, &["shop-1", "shop-3"]);
        shell.types("k delete pod shop-1");
        leads_to(shell, &["shop-3"]);
        shell.types("k label pod shop-2 app=shop");
        leads_to(shell, &["shop-2", "shop-3"]);
        shell.types("k get endpointslices -l kubernetes.io/service-name=shop");
        shell.types("k delete service shop");
        shell.types("k delete pod shop-2 shop-3");
    });
}
