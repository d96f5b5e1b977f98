//! What stands in a pod's /etc/hosts and /etc/resolv.conf, in the kubelet's own form. Pure functions on plain values:
//! nothing here reads or writes a file.

use std::net::IpAddr;

/// Kubernetes' limits for the resolver's lines (k8s.io/kubernetes/pkg/apis/core/validation): what is beyond them is cut.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_LINE_BYTES_MAX: usize = 2048;
/// RFC 1123: glibc has aborted on longer search paths.
const DOMAIN_BYTES_MAX: usize = 253;

const HOSTS_HEADER: &str = "# Kubernetes-managed hosts file.\n";
const HOSTS_HEADER_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";
const HOSTS_LOOPBACK: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\n\
    fe00::1\tip6-allnodes\n\
    fe00::2\tip6-allrouters\n";

/// One entry of `spec.hostAliases`: an address as text, for what the user wrote is what the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

/// /etc/hosts of a pod with a network of its own. `domain` is `SUBDOMAIN.NAMESPACE.svc.CLUSTER-DOMAIN` or empty.
pub fn hosts(addresses: &[IpAddr], hostname: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut text = format!("{HOSTS_HEADER}{HOSTS_LOOPBACK}");
    for address in addresses {
        match domain {
            "" => text += &format!("{address}\t{hostname}\n"),
            _ => text += &format!("{address}\t{hostname}.{domain}\t{hostname}\n"),
        }
    }
    text + &alias_lines(aliases)
}

/// /etc/hosts of a pod in the node's network: the node's own file, and the aliases.
pub fn hosts_of_node(node_file: &str, aliases: &[HostAlias]) -> String {
    format!("{HOSTS_HEADER_HOST_NETWORK}{node_file}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines: String = aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t"))).collect();
    format!("\n# Entries added by HostAliases.\n{lines}")
}

/// The lines of a resolv.conf(5). An option is `name` or `name:value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    /// Reads a resolv.conf: name servers add up, of `search` and `options` the last line counts.
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => resolver.searches = words.map(|word| word.strip_suffix('.').unwrap_or(word).to_owned()).collect(),
                Some("options") => resolver.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }
}

/// `spec.dnsPolicy`, with what each needs. A ClusterFirst pod in the node's network is `Default` unless its policy is
/// ClusterFirstWithHostNet; without a cluster name server it is `Default` too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DnsPolicy {
    /// Of a cluster with a name server of its own.
    ClusterFirst {
        nameserver: IpAddr,
        namespace: String,
        cluster_domain: String,
    },
    Default,
    None,
}

/// /etc/resolv.conf of a pod: what the policy gives, the pod's `spec.dnsConfig` after it, cut to Kubernetes' limits.
pub fn resolv_conf(policy: DnsPolicy, node: &Resolver, pod: &Resolver) -> String {
    let base = match policy {
        DnsPolicy::ClusterFirst { nameserver, namespace, cluster_domain } => {
            let cluster = [format!("{namespace}.svc.{cluster_domain}"), format!("svc.{cluster_domain}"), cluster_domain.to_owned()];
            Resolver {
                nameservers: vec![nameserver.to_string()],
                searches: cluster.into_iter().chain(node.searches.iter().cloned()).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
        DnsPolicy::Default => node.clone(),
        DnsPolicy::None => Resolver::default(),
    };
    let mut nameservers = without_repeats(base.nameservers.iter().chain(&pod.nameservers));
    nameservers.truncate(NAMESERVERS_MAX);
    let searches = searches_within_limits(without_repeats(base.searches.iter().chain(&pod.searches)));
    let options = merge_options(&base.options, &pod.options);

    let mut text = String::new();
    if !searches.is_empty() {
        text += &format!("search {}\n", searches.join(" "));
    }
    text.extend(nameservers.iter().map(|nameserver| format!("nameserver {nameserver}\n")));
    if !options.is_empty() {
        text += &format!("options {}\n", options.join(" "));
    }
    text
}

fn without_repeats<'a>(words: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut kept: Vec<&str> = Vec::new();
    for word in words {
        if !kept.contains(&word.as_str()) {
            kept.push(word);
        }
    }
    kept
}

fn searches_within_limits(mut searches: Vec<&str>) -> Vec<&str> {
    searches.truncate(SEARCHES_MAX);
    searches.retain(|search| search.len() <= DOMAIN_BYTES_MAX);
    while searches.iter().map(|search| search.len() + 1).sum::<usize>() > SEARCH_LINE_BYTES_MAX + 1 {
        searches.pop();
    }
    searches
}

/// The pod's value of an option takes the place of the policy's.
fn merge_options<'a>(base: &'a [String], pod: &'a [String]) -> Vec<&'a str> {
    let name = |option: &'a str| option.split_once(':').map_or(option, |(name, _)| name);
    let mut merged: Vec<&str> = Vec::new();
    for option in base.iter().chain(pod) {
        match merged.iter_mut().find(|kept| name(kept) == name(option)) {
            Some(kept) => *kept = option,
            None => merged.push(option),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn resolver(nameservers: &str, searches: &str, options: &str) -> Resolver {
        Resolver { nameservers: words(nameservers), searches: words(searches), options: words(options) }
    }

    #[test]
    fn hosts_reads_as_the_kubelet_writes_it() {
        let aliases = [HostAlias { ip: "123.45.67.89".into(), hostnames: words("foo bar baz") }];
        let text = hosts(&["203.0.113.1".parse().unwrap(), "fd00::6".parse().unwrap()], "web-0", "web.shop.svc.cluster.local", &aliases);
        let expected = "# Kubernetes-managed hosts file.\n\
            127.0.0.1\tlocalhost\n\
            ::1\tlocalhost ip6-localhost ip6-loopback\n\
            fe00::0\tip6-localnet\n\
            fe00::0\tip6-mcastprefix\n\
            fe00::1\tip6-allnodes\n\
            fe00::2\tip6-allrouters\n\
            203.0.113.1\tweb-0.web.shop.svc.cluster.local\tweb-0\n\
            fd00::6\tweb-0.web.shop.svc.cluster.local\tweb-0\n\
            \n\
            # Entries added by HostAliases.\n\
            123.45.67.89\tfoo\tbar\tbaz\n";
        assert_eq!(text, expected);
        assert!(hosts(&["203.0.113.1".parse().unwrap()], "web-0", "", &[]).ends_with("\n203.0.113.1\tweb-0\n"));
    }

    #[test]
    fn hosts_in_the_nodes_network_begins_with_the_nodes_file() {
        assert_eq!(hosts_of_node("127.0.0.1\tlocalhost\n", &[]), "# Kubernetes-managed hosts file (host network).\n127.0.0.1\tlocalhost\n");
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        let node = resolver("192.0.2.1 192.0.2.2", "example.org", "timeout:1");
        let none = Resolver::default();
        let cluster_first = DnsPolicy::ClusterFirst {
            nameserver: "10.96.0.10".parse().unwrap(),
            namespace: "shop".into(),
            cluster_domain: "cluster.local".into(),
        };
        let own = resolver("192.0.2.2 192.0.2.3 192.0.2.4", "example.org b.example", "ndots:2 edns0");
        let cases = [
            (
                cluster_first,
                &none,
                "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\nnameserver 10.96.0.10\noptions ndots:5\n",
            ),
            (DnsPolicy::Default, &none, "search example.org\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions timeout:1\n"),
            (DnsPolicy::None, &none, ""),
            (
                DnsPolicy::None,
                &own,
                "search example.org b.example\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\noptions ndots:2 edns0\n",
            ),
            (
                DnsPolicy::Default,
                &own,
                "search example.org b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions timeout:1 ndots:2 edns0\n",
            ),
        ];
        for (policy, pod, expected) in cases {
            let said = format!("{policy:?}");
            assert_eq!(resolv_conf(policy, &node, pod), expected, "{said}");
        }
    }

    #[test]
    fn an_option_of_the_pod_takes_the_place_of_the_policys() {
        let cluster_first =
            DnsPolicy::ClusterFirst { nameserver: "10.96.0.10".parse().unwrap(), namespace: "a".into(), cluster_domain: "b".into() };
        let text = resolv_conf(cluster_first, &Resolver::default(), &resolver("", "", "ndots:2 rotate"));
        assert!(text.ends_with("\noptions ndots:2 rotate\n"), "{text}");
    }

    #[test]
    fn what_is_beyond_kubernetes_limits_is_cut() {
        let long = "x".repeat(200);
        let searches: String = (0..40).map(|n| format!("{long}{n} ")).collect();
        let text = resolv_conf(DnsPolicy::None, &Resolver::default(), &resolver("1.1.1.1 2.2.2.2 3.3.3.3 4.4.4.4", &searches, ""));
        let line = text.lines().next().unwrap();
        assert!(line.len() <= "search ".len() + SEARCH_LINE_BYTES_MAX, "{}", line.len());
        assert_eq!(text.lines().count(), 4);
    }

    #[test]
    fn the_nodes_own_resolv_conf_is_understood() {
        let text = "# comment\nsearch a.example\nsearch b.example. c.example\nnameserver 192.0.2.1\nnameserver\noptions ndots:1\n";
        assert_eq!(Resolver::parse(text), resolver("192.0.2.1", "b.example c.example", "ndots:1"));
    }
}
