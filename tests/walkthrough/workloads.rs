//! Lines about what is stored: what runs and why, manifests that come, change and go, namespaces.

use crate::course::{Course, Shell, assert_says, name};
use crate::lab::wait_until;

/// As the course prints it, comments and all: it is indented by tabs.
const PRINTED: &str = "apiVersion: extensions/v1beta1  #当前配置格式的版本
kind: Deployment  #创建的资源类型
metadata:  #该资源的元数据
\tname: nginx-deployment  
spec:  #deployment的规格
\treplicas: 2 #指明副本数量
\ttemplate:   #pod的模板
\t\tmetadata: #pod的元数据
\t\t\tlabels:
\t\t\t\tapp: web_server
\t\tspec:  #pod的规格
\t\t\tcontainers:
\t\t\t\t- name: nginx
\t\t\t\t  image: nginx:1.7.9
";
/// What an unmodified kubectl sends of it: it knows no version that is not served.
const SELECTOR: &str = "spec:\n  selector:\n    matchLabels:\n      app: web_server\n";

pub fn describe(course: &Course) {
    course.both(|shell| {
        let all = shell.types("k get pod --all-namespaces -o wide");
        for part in ["NAMESPACE", "NOMINATED NODE", "default ", "with-kubectl ", "Running", " 10.244.", &course.lab.node_of(2)] {
            assert!(all.contains(part), "{part}: {all}");
        }
        let pod = shell.pods("app=httpd-app").remove(0);
        let address = pod["status"]["podIP"].as_str().unwrap();
        let node = pod["spec"]["nodeName"].as_str().unwrap();
        let said = shell.types(&format!("k describe pod {}", name(&pod)));
        let place = format!("{node}/172.30.0.");
        assert_says(&said, &["Controlled By:  ReplicaSet/httpd-app-", address, &place, "Conditions:", "PodScheduled", "QoS Class"]);
        // The story of its start, in its order.
        let steps =
            ["Successfully assigned", "Pulling image \"httpd\"", "Successfully pulled image", "ontainer created", "ontainer started"];
        let at = |step: &str| said.find(step).unwrap_or_else(|| panic!("{step:?} is missing: {said}"));
        assert!(steps.map(at).is_sorted(), "{said}");
        let said = shell.types("k describe deployment httpd-app");
        assert_says(
            &said,
            &["2 desired | 2 updated | 2 total | 2 available | 0 unavailable", "NewReplicaSet:", "ScalingReplicaSet", "Scaled up"],
        );
        let said = shell.types("k describe replicaset -l app=httpd-app");
        assert_says(
            &said,
            &["Controlled By:  Deployment/httpd-app", "2 current / 2 desired", "SuccessfulCreate", "Created pod: httpd-app-"],
        );
    });
}

pub fn apply(course: &Course) {
    let edgectl = course.edgectl();
    edgectl.write("nginx.yml", PRINTED);
    println!("      (as the course prints it, with tabs)");
    let why = edgectl.is_refused("k apply -f nginx.yml");
    assert_says(&why, &["nginx.yml", "line 4 column 1", "tab", "YAML allows spaces only"]);
    println!("        {}", why.trim());
    println!("      (and with spaces)");
    let spaced = PRINTED.replace('\t', "  ");
    edgectl.write("nginx.yml", &spaced);
    let said = edgectl.types("k apply -f nginx.yml");
    assert_says(&said, &["deployment.apps/nginx-deployment created", "Warning: ", "extensions/v1beta1", "apps/v1", "selector"]);
    for line in said.lines() {
        println!("        {line}");
    }
    let [_, kubectl] = course.shells();
    kubectl.write("nginx.yml", &spaced.replace("extensions/v1beta1", "apps/v1").replacen("spec:  #deployment的规格\n", SELECTOR, 1));
    kubectl.types("k apply -f nginx.yml");
    course.both(|shell| {
        shell.waits_for_pods("app=web_server", 2);
        let served = shell.get("deployment nginx-deployment");
        assert_eq!((&served["apiVersion"], &served["spec"]["selector"]["matchLabels"]["app"]), (&"apps/v1".into(), &"web_server".into()));
        assert_says(&shell.types("k get deployment"), &["nginx-deployment", "2/2"]);
        shell.types("k get replicaset");
        shell.types("k get pod -o wide");
    });
}

pub fn change(course: &Course) {
    course.both(|shell| {
        shell.types("sed -i 's/replicas: 2/replicas: 3/' nginx.yml");
        assert_says(&shell.types("k apply -f nginx.yml"), &["deployment.apps/nginx-deployment configured"]);
        shell.waits_for_pods("app=web_server", 3);
        shell.types("k delete -f nginx.yml");
        shell.waits_for_pods("app=web_server", 0);
        assert!(!shell.types("k get deployment").contains("nginx-deployment"));
        assert!(!shell.types("k get replicaset").contains("nginx-deployment"));
    });
}

pub fn namespaces(course: &Course) {
    course.both(|shell| {
        assert_says(&shell.types("k get namespaces"), &["default ", "kube-system "]);
        let own = format!("shop-of-{}", shell.program);
        shell.types(&format!("k create namespace {own}"));
        // The name is taken where httpd-app runs, and free in another namespace.
        let taken = shell.is_refused("k create deployment httpd-app --image=httpd");
        assert_says(&taken, &["already exists"]);
        shell.types(&format!("k create deployment httpd-app --image=httpd -n {own}"));
        shell.types(&format!("k create configmap page --from-literal=a=b -n {own}"));
        wait_until("it runs", || is_there(shell, &own, "1/1"));
        shell.types(&format!("k get deployments -n {own}"));
        shell.types(&format!("k delete namespace {own}"));
        assert!(!shell.types("k get namespaces").contains(&own));
        let left = shell.sees("k get all,configmaps --all-namespaces");
        assert!(!left.contains(&own), "{left}");
        shell.waits_for_pods("app=httpd-app", 2);
    });
}

fn is_there(shell: &Shell, namespace: &str, ready: &str) -> bool {
    shell.sees(&format!("k get deployments -n {namespace}")).contains(ready)
}
