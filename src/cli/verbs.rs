//! The table of verbs: what each is called, what it says of itself, and who runs it. It decides nothing.

use std::future::Future;
use std::pin::Pin;

use anyhow::Result;
use argh::{ArgsInfo, CommandInfoWithArgs};

use super::Context;
use super::{
    apply, attach, auth, backup, change, cluster, completion, config, create, delete, describe, diff, drain, edit, events, exec, explain,
    generate, get, image, init, join, labels, logs, nodes, port_forward, reset, rollout, run, set, token, top, up, wait,
};

/// What a verb answers: the exit code.
pub type Answer = Result<u8>;
pub type Running<'a> = Pin<Box<dyn Future<Output = Answer> + 'a>>;

/// One verb of the command line; a name of two words is a verb below another one.
pub struct Verb {
    pub name: &'static str,
    /// One line for the list of verbs.
    pub about: &'static str,
    /// What stands behind `edgectl ` in its usage line.
    pub usage: &'static str,
    pub examples: &'static str,
    pub info: fn() -> CommandInfoWithArgs,
    pub run: for<'a> fn(&'a Context) -> Running<'a>,
}

/// A row of the table: a module with `Flags` and `async fn run(&Context, Flags) -> Result<u8>`.
macro_rules! verb {
    ($name:literal, $about:literal, $usage:literal, $examples:expr, $flags:ty, $run:path) => {
        Verb {
            name: $name,
            about: $about,
            usage: $usage,
            examples: $examples,
            info: <$flags>::get_args_info,
            run: |cx| Box::pin(async move { $run(cx, cx.flags::<$flags>()?).await }),
        }
    };
}

/// Groups of verbs, as the help lists them.
pub const GROUPS: &[(&str, &[Verb])] = &[
    (
        "Basic Commands",
        &[
            verb!(
                "get",
                "Display one or many resources",
                "get (TYPE[.VERSION][.GROUP] [NAME | -l label] | TYPE/NAME ...) [flags]",
                get::EXAMPLES,
                get::Flags,
                get::run
            ),
            verb!(
                "describe",
                "Show details of a specific resource or group of resources",
                "describe (-f FILENAME | TYPE [NAME_PREFIX | -l label] | TYPE/NAME) [flags]",
                describe::EXAMPLES,
                describe::Flags,
                describe::run
            ),
            verb!(
                "create",
                "Create a resource from a file or from stdin",
                "create -f FILENAME [flags]",
                create::EXAMPLES,
                create::Flags,
                create::run
            ),
            verb!(
                "create deployment",
                "Create a deployment with the specified name",
                "create deployment NAME --image=image -- [COMMAND] [args...]",
                "",
                generate::Deployment,
                generate::deployment
            ),
            verb!(
                "create namespace",
                "Create a namespace with the specified name",
                "create namespace NAME",
                "",
                generate::Namespace,
                generate::namespace
            ),
            verb!(
                "create serviceaccount",
                "Create a service account with the specified name",
                "create serviceaccount NAME",
                "",
                generate::ServiceAccount,
                generate::service_account
            ),
            verb!(
                "create configmap",
                "Create a config map from a local file, directory or literal value",
                "create configmap NAME [--from-file=[key=]source] [--from-literal=key1=value1]",
                "",
                generate::ConfigMap,
                generate::config_map
            ),
            verb!(
                "create secret generic",
                "Create a secret from a local file, directory, or literal value",
                "create secret generic NAME [--from-file=[key=]source] [--from-literal=key1=value1]",
                "",
                generate::Secret,
                generate::secret
            ),
            verb!(
                "create secret docker-registry",
                "Create a secret for use with a Docker registry",
                "create secret docker-registry NAME --docker-username=user --docker-password=password [--docker-server=string]",
                "",
                generate::RegistrySecret,
                generate::registry_secret
            ),
            verb!(
                "create secret tls",
                "Create a TLS secret",
                "create secret tls NAME --cert=path/to/cert/file --key=path/to/key/file",
                "",
                generate::TlsSecret,
                generate::tls_secret
            ),
            verb!(
                "create job",
                "Create a job with the specified name",
                "create job NAME --image=image [--from=cronjob/name] -- [COMMAND] [args...]",
                "",
                generate::Job,
                generate::job
            ),
            verb!(
                "create cronjob",
                "Create a cron job with the specified name",
                "create cronjob NAME --image=image --schedule='0/5 * * * ?' -- [COMMAND] [args...]",
                "",
                generate::CronJob,
                generate::cron_job
            ),
            verb!(
                "create service clusterip",
                "Create a ClusterIP service",
                "create service clusterip NAME [--tcp=<port>:<targetPort>]",
                "",
                generate::Service,
                generate::service
            ),
            verb!(
                "create service nodeport",
                "Create a NodePort service",
                "create service nodeport NAME [--tcp=port:targetPort]",
                "",
                generate::Service,
                generate::service
            ),
            verb!(
                "create service loadbalancer",
                "Create a LoadBalancer service",
                "create service loadbalancer NAME [--tcp=port:targetPort]",
                "",
                generate::Service,
                generate::service
            ),
            verb!(
                "create service externalname",
                "Create an ExternalName service",
                "create service externalname NAME --external-name external.name",
                "",
                generate::Service,
                generate::service
            ),
            verb!(
                "create role",
                "Create a role with single rule",
                "create role NAME --verb=verb --resource=resource.group/subresource",
                "",
                generate::Role,
                generate::role
            ),
            verb!(
                "create clusterrole",
                "Create a cluster role",
                "create clusterrole NAME --verb=verb --resource=resource.group",
                "",
                generate::Role,
                generate::role
            ),
            verb!(
                "create rolebinding",
                "Create a role binding for a particular role or cluster role",
                "create rolebinding NAME --clusterrole=NAME|--role=NAME [--user=username]",
                "",
                generate::RoleBinding,
                generate::role_binding
            ),
            verb!(
                "create clusterrolebinding",
                "Create a cluster role binding for a particular cluster role",
                "create clusterrolebinding NAME --clusterrole=NAME [--user=username]",
                "",
                generate::RoleBinding,
                generate::role_binding
            ),
            verb!(
                "create ingress",
                "Create an ingress with the specified name",
                "create ingress NAME --rule=host/path=service:port[,tls[=secret]]",
                "",
                generate::Ingress,
                generate::ingress
            ),
            verb!(
                "create quota",
                "Create a quota with the specified name",
                "create quota NAME [--hard=key1=value1,key2=value2]",
                "",
                generate::Quota,
                generate::quota
            ),
            verb!(
                "create poddisruptionbudget",
                "Create a pod disruption budget with the specified name",
                "create poddisruptionbudget NAME --selector=SELECTOR --min-available=N",
                "",
                generate::DisruptionBudget,
                generate::disruption_budget
            ),
            verb!(
                "create priorityclass",
                "Create a priority class with the specified name",
                "create priorityclass NAME --value=VALUE",
                "",
                generate::PriorityClass,
                generate::priority_class
            ),
            verb!(
                "create token",
                "Request a service account token",
                "create token SERVICE_ACCOUNT_NAME",
                "",
                generate::Token,
                generate::token
            ),
            verb!(
                "apply",
                "Apply a configuration to a resource by file name or stdin",
                "apply (-f FILENAME | -k DIRECTORY) [flags]",
                apply::EXAMPLES,
                apply::Flags,
                apply::run
            ),
            verb!(
                "apply view-last-applied",
                "View the last applied configuration of a resource",
                "apply view-last-applied (TYPE NAME | TYPE/NAME | -f FILENAME)",
                "",
                apply::LastFlags,
                apply::view_last
            ),
            verb!("diff", "Show what apply would change", "diff -f FILENAME", diff::EXAMPLES, diff::Flags, diff::run),
            verb!(
                "replace",
                "Replace a resource by file name or stdin",
                "replace -f FILENAME [flags]",
                create::REPLACE_EXAMPLES,
                create::ReplaceFlags,
                create::replace
            ),
            verb!(
                "run",
                "Run a particular image on the cluster",
                "run NAME --image=image [--env=\"key=value\"] [--port=port] -- [COMMAND] [args...]",
                run::RUN_EXAMPLES,
                run::RunFlags,
                run::run
            ),
            verb!(
                "expose",
                "Take a pod or a workload and expose it as a new service",
                "expose (-f FILENAME | TYPE NAME) [--port=port] [--target-port=number-or-name]",
                run::EXPOSE_EXAMPLES,
                run::ExposeFlags,
                run::expose
            ),
            verb!(
                "edit",
                "Edit a resource on the server",
                "edit (TYPE/NAME | -f FILENAME) [flags]",
                edit::EXAMPLES,
                edit::Flags,
                edit::run
            ),
            verb!(
                "patch",
                "Update fields of a resource",
                "patch (-f FILENAME | TYPE NAME) [-p PATCH|--patch-file FILE] [flags]",
                change::PATCH_EXAMPLES,
                change::PatchFlags,
                change::patch
            ),
            verb!(
                "delete",
                "Delete resources by file names, stdin, resources and names, or by resources and label selector",
                "delete ([-f FILENAME] | TYPE [(NAME | -l label | --all)]) [flags]",
                delete::EXAMPLES,
                delete::Flags,
                delete::run
            ),
        ],
    ),
    (
        "Deploy Commands",
        &[
            verb!(
                "set image",
                "Update the image of a pod template",
                "set image (-f FILENAME | TYPE NAME) CONTAINER_NAME_1=CONTAINER_IMAGE_1 ...",
                set::IMAGE_EXAMPLES,
                set::Flags,
                set::image
            ),
            verb!(
                "set env",
                "Update environment variables on a pod template",
                "set env RESOURCE/NAME KEY_1=VAL_1 ... KEY_N-",
                set::ENV_EXAMPLES,
                set::Flags,
                set::env
            ),
            verb!(
                "set resources",
                "Update resource requests/limits on objects with pod templates",
                "set resources (-f FILENAME | TYPE NAME) ([--limits=LIMITS & --requests=REQUESTS]",
                set::RESOURCES_EXAMPLES,
                set::Flags,
                set::resources
            ),
            verb!(
                "set serviceaccount",
                "Update the service account of a resource",
                "set serviceaccount (-f FILENAME | TYPE NAME) SERVICE_ACCOUNT",
                "",
                set::Flags,
                set::service_account
            ),
            verb!(
                "set selector",
                "Set the selector on a resource",
                "set selector (-f FILENAME | TYPE NAME) EXPRESSIONS",
                "",
                set::Flags,
                set::selector
            ),
            verb!(
                "set subject",
                "Update the user, group, or service account in a role binding or cluster role binding",
                "set subject (-f FILENAME | TYPE NAME) [--user=username] [--group=groupname] [--serviceaccount=namespace:name]",
                "",
                set::SubjectFlags,
                set::subject
            ),
            verb!(
                "rollout status",
                "Show the status of the rollout",
                "rollout status (TYPE NAME | TYPE/NAME) [flags]",
                rollout::STATUS_EXAMPLES,
                rollout::Flags,
                rollout::status
            ),
            verb!(
                "rollout history",
                "View rollout history",
                "rollout history (TYPE NAME | TYPE/NAME) [flags]",
                rollout::HISTORY_EXAMPLES,
                rollout::Flags,
                rollout::history
            ),
            verb!(
                "rollout undo",
                "Undo a previous rollout",
                "rollout undo (TYPE NAME | TYPE/NAME) [flags]",
                rollout::UNDO_EXAMPLES,
                rollout::Flags,
                rollout::undo
            ),
            verb!(
                "rollout restart",
                "Restart a resource",
                "rollout restart (TYPE NAME | TYPE/NAME) [flags]",
                "",
                rollout::Flags,
                rollout::restart
            ),
            verb!(
                "rollout pause",
                "Mark the provided resource as paused",
                "rollout pause (TYPE NAME | TYPE/NAME) [flags]",
                "",
                rollout::Flags,
                rollout::pause
            ),
            verb!(
                "rollout resume",
                "Resume a paused resource",
                "rollout resume (TYPE NAME | TYPE/NAME) [flags]",
                "",
                rollout::Flags,
                rollout::resume
            ),
            verb!(
                "scale",
                "Set a new size for a deployment, replica set, or replication controller",
                "scale --replicas=COUNT (-f FILENAME | TYPE NAME) [flags]",
                change::SCALE_EXAMPLES,
                change::ScaleFlags,
                change::scale
            ),
            verb!(
                "autoscale",
                "Let a controller set the size of a workload, by its load",
                "autoscale (-f FILENAME | TYPE NAME) --max=MAX [--min=MIN] [--cpu=CPU]",
                run::AUTOSCALE_EXAMPLES,
                run::AutoscaleFlags,
                run::autoscale
            ),
            verb!(
                "label",
                "Update the labels on a resource",
                "label [--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N [flags]",
                labels::LABEL_EXAMPLES,
                labels::Flags,
                labels::label
            ),
            verb!(
                "annotate",
                "Update the annotations on a resource",
                "annotate [--overwrite] (-f FILENAME | TYPE NAME) KEY_1=VAL_1 ... KEY_N=VAL_N [flags]",
                labels::ANNOTATE_EXAMPLES,
                labels::Flags,
                labels::annotate
            ),
        ],
    ),
    (
        "Troubleshooting and Nodes",
        &[
            verb!(
                "logs",
                "Print the logs for a container in a pod",
                "logs [-f] [-p] (POD | TYPE/NAME) [-c CONTAINER] [flags]",
                logs::EXAMPLES,
                logs::Flags,
                logs::run
            ),
            verb!(
                "exec",
                "Execute a command in a container",
                "exec (POD | TYPE/NAME) [-c CONTAINER] [-i] [-t] -- COMMAND [ARGS...]",
                exec::EXAMPLES,
                exec::Flags,
                exec::run
            ),
            verb!(
                "attach",
                "Attach to a running container",
                "attach (POD | TYPE/NAME) [-c CONTAINER] [-i] [-t]",
                attach::EXAMPLES,
                attach::Flags,
                attach::run
            ),
            verb!(
                "port-forward",
                "Forward one or more local ports to a pod",
                "port-forward TYPE/NAME [LOCAL_PORT:]REMOTE_PORT [...[LOCAL_PORT_N:]REMOTE_PORT_N]",
                port_forward::EXAMPLES,
                port_forward::Flags,
                port_forward::run
            ),
            verb!(
                "top node",
                "Display resource (CPU/memory) usage of nodes",
                "top node [NAME | -l label]",
                top::NODE_EXAMPLES,
                top::NodeFlags,
                top::node
            ),
            verb!(
                "top pod",
                "Display resource (CPU/memory) usage of pods",
                "top pod [NAME | -l label] [--containers] [-A]",
                top::POD_EXAMPLES,
                top::PodFlags,
                top::pod
            ),
            verb!(
                "events",
                "List events",
                "events [--for TYPE/NAME] [--watch] [--types=Normal,Warning]",
                events::EXAMPLES,
                events::Flags,
                events::run
            ),
            verb!(
                "wait",
                "Wait for a specific condition on one or many resources",
                "wait ([-f FILENAME] | resource.group/resource.name | resource.group [(-l label | --all)]) \
                    --for=create|delete|condition=|jsonpath=",
                wait::EXAMPLES,
                wait::Flags,
                wait::run
            ),
            verb!("cordon", "Mark node as unschedulable", "cordon NODE", nodes::CORDON_EXAMPLES, nodes::CordonFlags, nodes::cordon),
            verb!("uncordon", "Mark node as schedulable", "uncordon NODE", nodes::UNCORDON_EXAMPLES, nodes::CordonFlags, nodes::uncordon),
            verb!("drain", "Drain node in preparation for maintenance", "drain NODE", drain::EXAMPLES, drain::Flags, drain::run),
            verb!(
                "taint",
                "Update the taints on one or more nodes",
                "taint NODE NAME KEY_1=VAL_1:TAINT_EFFECT_1 ... KEY_N=VAL_N:TAINT_EFFECT_N",
                nodes::TAINT_EXAMPLES,
                nodes::TaintFlags,
                nodes::taint
            ),
        ],
    ),
    (
        "Cluster and Settings",
        &[
            verb!(
                "version",
                "Print the client and server version information",
                "version [flags]",
                "",
                cluster::VersionFlags,
                cluster::version
            ),
            verb!("cluster-info", "Display cluster information", "cluster-info", "", cluster::InfoFlags, cluster::info),
            verb!(
                "cluster-info dump",
                "Dump information for debugging and diagnosis",
                "cluster-info dump [flags]",
                "",
                cluster::DumpFlags,
                cluster::dump
            ),
            verb!(
                "api-resources",
                "Print the supported API resources on the server",
                "api-resources [flags]",
                "",
                cluster::ResourcesFlags,
                cluster::resources
            ),
            verb!(
                "api-versions",
                "Print the supported API versions on the server, in the form of \"group/version\"",
                "api-versions",
                "",
                cluster::VersionsFlags,
                cluster::versions
            ),
            verb!(
                "explain",
                "Get documentation for a resource",
                "explain TYPE [--recursive=FALSE|TRUE] [--api-version=api-version-group]",
                explain::EXAMPLES,
                explain::Flags,
                explain::run
            ),
            verb!(
                "auth can-i",
                "Check whether an action is allowed",
                "auth can-i VERB [TYPE | TYPE/NAME | NONRESOURCEURL]",
                auth::CAN_I_EXAMPLES,
                auth::CanIFlags,
                auth::can_i
            ),
            verb!(
                "auth whoami",
                "Show the attributes of the user the server takes you for",
                "auth whoami",
                "",
                auth::WhoamiFlags,
                auth::whoami
            ),
            verb!(
                "config view",
                "Display merged kubeconfig settings or a specified kubeconfig file",
                "config view [flags]",
                "",
                config::Flags,
                config::view
            ),
            verb!(
                "config get-contexts",
                "Describe one or many contexts",
                "config get-contexts [(-o|--output=)name)]",
                "",
                config::Flags,
                config::get_contexts
            ),
            verb!(
                "config current-context",
                "Display the current-context",
                "config current-context",
                "",
                config::Flags,
                config::current_context
            ),
            verb!(
                "config use-context",
                "Set the current-context in a kubeconfig file",
                "config use-context CONTEXT_NAME",
                "",
                config::Flags,
                config::use_context
            ),
            verb!(
                "config set-context",
                "Set a context entry in kubeconfig",
                "config set-context [NAME | --current] [--cluster=name] [--user=name] [--namespace=namespace]",
                "",
                config::Flags,
                config::set_context
            ),
            verb!(
                "config rename-context",
                "Rename a context from the kubeconfig file",
                "config rename-context CONTEXT_NAME NEW_NAME",
                "",
                config::Flags,
                config::rename_context
            ),
            verb!(
                "config delete-context",
                "Delete the specified context from the kubeconfig",
                "config delete-context NAME",
                "",
                config::Flags,
                config::delete_context
            ),
            verb!(
                "config get-clusters",
                "Display clusters defined in the kubeconfig",
                "config get-clusters",
                "",
                config::Flags,
                config::get_clusters
            ),
            verb!(
                "config set",
                "Set an individual value in a kubeconfig file",
                "config set PROPERTY_NAME PROPERTY_VALUE",
                "",
                config::Flags,
                config::set_property
            ),
            verb!(
                "config unset",
                "Unset an individual value in a kubeconfig file",
                "config unset PROPERTY_NAME",
                "",
                config::Flags,
                config::unset_property
            ),
            verb!(
                "config set-cluster",
                "Set a cluster entry in kubeconfig",
                "config set-cluster NAME [--server=server] [--certificate-authority=path] [--insecure-skip-tls-verify=true]",
                "",
                config::Flags,
                config::set_cluster
            ),
            verb!(
                "config set-credentials",
                "Set a user entry in kubeconfig",
                "config set-credentials NAME [--client-certificate=path] [--client-key=path] [--token=token]",
                "",
                config::Flags,
                config::set_credentials
            ),
            verb!(
                "config delete-cluster",
                "Delete the specified cluster from the kubeconfig",
                "config delete-cluster NAME",
                "",
                config::Flags,
                config::delete_cluster
            ),
            verb!(
                "config delete-user",
                "Delete the specified user from the kubeconfig",
                "config delete-user NAME",
                "",
                config::Flags,
                config::delete_user
            ),
            verb!("config get-users", "Display users defined in the kubeconfig", "config get-users", "", config::Flags, config::get_users),
            verb!(
                "completion",
                "Output shell completion code for bash",
                "completion SHELL",
                completion::EXAMPLES,
                completion::Flags,
                completion::run
            ),
            verb!(
                "__complete",
                "What could stand at the end of a command line",
                "__complete -- WORDS",
                "",
                completion::CompleteFlags,
                completion::complete
            ),
        ],
    ),
    (
        "A Cluster on This Machine",
        &[
            verb!("up", "Start a cluster to try things on", "up [--name NAME] [flags]", up::EXAMPLES, up::Flags, up::run),
            verb!(
                "down",
                "Take such a cluster away, without a trace",
                "down [--name NAME]",
                up::down::EXAMPLES,
                up::down::Flags,
                up::down::run
            ),
        ],
    ),
    (
        "A Cluster of Boards",
        &[
            verb!(
                "init",
                "Make this board the master of a new cluster",
                "init [--name NAME] [flags]",
                init::EXAMPLES,
                init::Flags,
                init::run
            ),
            verb!(
                "join",
                "Make this board a node of a cluster",
                "join MASTER[:PORT] --token TOKEN --ca-hash sha256:HEX [flags]",
                join::EXAMPLES,
                join::Flags,
                join::run
            ),
            verb!(
                "reset",
                "Take this board out of its cluster, and all of that off it",
                "reset [--yes] [flags]",
                reset::EXAMPLES,
                reset::Flags,
                reset::run
            ),
            verb!(
                "backup",
                "Write all that this board's master needs into one file",
                "backup FILE [flags]",
                backup::BACKUP_EXAMPLES,
                backup::BackupFlags,
                backup::backup
            ),
            verb!(
                "restore",
                "Make this board's master what it was when a backup was made",
                "restore FILE [--force] [flags]",
                backup::RESTORE_EXAMPLES,
                backup::RestoreFlags,
                backup::restore
            ),
            verb!(
                "token create",
                "Make a token for boards to join with",
                "token create [TOKEN] [--ttl DURATION] [--print-join-command]",
                token::CREATE_EXAMPLES,
                token::CreateFlags,
                token::create
            ),
            verb!("token list", "List the tokens that boards may join with", "token list", "", token::ListFlags, token::list),
            verb!("token delete", "Delete tokens", "token delete TOKEN-ID...", "", token::DeleteFlags, token::delete),
        ],
    ),
    (
        "Images of This Machine",
        &[
            verb!(
                "image pull",
                "Pull an image from its registry",
                "image pull NAME... [flags]",
                image::PULL_EXAMPLES,
                image::PullFlags,
                image::pull
            ),
            verb!("image ls", "List the images of this machine", "image ls [flags]", image::LS_EXAMPLES, image::LsFlags, image::ls),
            verb!(
                "image rm",
                "Remove names of images, and images",
                "image rm NAME|ID... [flags]",
                image::RM_EXAMPLES,
                image::RmFlags,
                image::rm
            ),
            verb!(
                "image load",
                "Load images from an archive",
                "image load [-i FILE] [flags]",
                image::LOAD_EXAMPLES,
                image::LoadFlags,
                image::load
            ),
            verb!(
                "image save",
                "Save images into an archive",
                "image save NAME|ID... [-o FILE] [flags]",
                image::SAVE_EXAMPLES,
                image::SaveFlags,
                image::save
            ),
        ],
    ),
];

pub fn verbs() -> impl Iterator<Item = &'static Verb> {
    GROUPS.iter().flat_map(|(_, verbs)| verbs.iter())
}
