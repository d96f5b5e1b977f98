//! `edgectl token`: the bootstrap tokens that boards join with, as kubeadm's verbs of that name make, list and delete them.
//! Each is a Secret of kube-system; whether one is good the API server decides. <https://kubernetes.io/docs/reference/setup-tools/kubeadm/kubeadm-token/>

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use argh::{ArgsInfo, FromArgs};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::Context;
use super::tabwriter::Tabwriter;
use crate::api::text;
use crate::base::id;
use crate::base::place::Places;
use crate::base::time::Timestamp;
use crate::client::{Client, Manner, Query, Target, is_not_found, kubeconfig};
use crate::wire::pin::Pin;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const NAME_PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Whoever joins with such a token is in this group, too; kubeadm's.
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
const ID_CHARACTERS: usize = 6;
const SECRET_CHARACTERS: usize = 16;

/// `ID.SECRET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

impl Token {
    pub fn random() -> Self {
        Self { id: random_text(ID_CHARACTERS), secret: random_text(SECRET_CHARACTERS) }
    }

    pub fn parse(text: &str) -> Result<Self> {
        let is_part = |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| ALPHABET.contains(&byte));
        match text.split_once('.') {
            Some((id, secret)) if is_part(id, ID_CHARACTERS) && is_part(secret, SECRET_CHARACTERS) => {
                Ok(Self { id: id.to_owned(), secret: secret.to_owned() })
            }
            // It is not shown: most of it may be right.
            _ => bail!("the token is not of the form [a-z0-9]{{{ID_CHARACTERS}}}.[a-z0-9]{{{SECRET_CHARACTERS}}}"),
        }
    }

    pub fn text(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Makes the token known to the cluster for as long as `ttl` says; zero is for ever.
    pub async fn create(&self, client: &Client, ttl: Duration, description: &str) -> Result<()> {
        let mut data = json!({
            "token-id": self.id, "token-secret": self.secret, "usage-bootstrap-authentication": "true", "auth-extra-groups": GROUP,
        });
        if !ttl.is_zero() {
            data["expiration"] = Timestamp::now().plus(ttl).to_string().into();
        }
        if !description.is_empty() {
            data["description"] = description.into();
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE, "metadata": {"name": format!("{NAME_PREFIX}{}", self.id)}, "stringData": data,
        });
        client.create(SECRETS, &Query::new(), &secret).await.context("make the bootstrap token")?;
        Ok(())
    }

    /// Ends the token; that it is gone already is fine.
    pub async fn delete(&self, client: &Client) -> Result<()> {
        match delete_secret(client, &self.id).await {
            Err(error) if !is_not_found(&error) => Err(error.context("delete the bootstrap token")),
            _ => Ok(()),
        }
    }
}

async fn delete_secret(client: &Client, id: &str) -> Result<Value> {
    client.delete(&format!("{SECRETS}/{NAME_PREFIX}{id}"), &json!({})).await
}

fn random_text(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        // 252 is the last multiple of 36 in a byte: with those above it, some characters would be likelier than others.
        let even = id::random::<32>().into_iter().filter(|byte| *byte < 252);
        text.extend(even.map(|byte| ALPHABET[usize::from(byte) % ALPHABET.len()] as char).take(length - text.len()));
    }
    text
}

/// The cluster of the kubeconfig; on the master's board without one, that of its administrator.
fn connect(cx: &Context) -> Result<(Target, Client)> {
    let admin = Places::below("/".as_ref()).admin_kubeconfig();
    let has_own = cx.global.kubeconfig.is_some() || kubeconfig::files(None).iter().any(|path| path.exists());
    if has_own || !admin.exists() {
        return Ok((cx.kubeconfig()?.target(&cx.overrides())?, cx.client()?.clone()));
    }
    let target = kubeconfig::load(admin.to_str())?.target(&cx.overrides())?;
    let client = Client::new(&target, Manner { timeout: cx.request_timeout()?, ..Manner::default() })?;
    Ok((target, client))
}

pub const CREATE_EXAMPLES: &str = "# The line to type on a board that shall join
edgectl token create --print-join-command
# One that is good for an hour
edgectl token create --ttl 1h";

/// make a token for boards to join with
#[derive(FromArgs, ArgsInfo)]
pub struct CreateFlags {
    /// the token, of the form [a-z0-9]{{6}}.[a-z0-9]{{16}}; a random one if it is not given
    #[argh(positional)]
    token: Option<String>,
    /// how long it is good (1s, 2m, 3h; 0 is for ever)
    #[argh(option, default = "\"24h\".to_owned()")]
    ttl: String,
    /// what it is for, in words for people
    #[argh(option, default = "String::new()")]
    description: String,
    /// print the whole line to type on a board instead of the token alone
    #[argh(switch)]
    print_join_command: bool,
}

pub async fn create(cx: &Context, flags: CreateFlags) -> Result<u8> {
    let ttl = cx.duration("--ttl", &flags.ttl)?;
    let token = flags.token.as_deref().map_or_else(|| Ok(Token::random()), Token::parse)?;
    let (target, client) = connect(cx)?;
    token.create(&client, ttl, &flags.description).await?;
    if !flags.print_join_command {
        cx.println(&token.text())?;
        return Ok(0);
    }
    cx.println(&join_command(&target, &client, &token).await?)?;
    Ok(0)
}

/// What to type on a board that is to join.
pub async fn join_command(target: &Target, client: &Client, token: &Token) -> Result<String> {
    let authority =
        target.certificate_authority.as_deref().context("the kubeconfig has no certificate-authority: boards could not know the master")?;
    let hash = Pin::of_pem(authority)?;
    Ok(format!("edgectl join {} --token {} --ca-hash {hash}", master(client).await?, token.text()))
}

/// Where boards reach the API: the kubeconfig may know a way that is this machine's alone.
async fn master(client: &Client) -> Result<String> {
    let endpoints = client.get("/api/v1/namespaces/default/endpoints/kubernetes").await.context("look up the master's address")?;
    let subset = &endpoints["subsets"][0];
    let address = subset["addresses"][0]["ip"].as_str().context("the endpoints of the Service kubernetes have no address")?;
    let port = subset["ports"][0]["port"].as_u64().context("the endpoints of the Service kubernetes have no port")?;
    Ok(if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") })
}

/// list the tokens that boards may join with
#[derive(FromArgs, ArgsInfo)]
pub struct ListFlags {}

pub async fn list(cx: &Context, _: ListFlags) -> Result<u8> {
    let (_, client) = connect(cx)?;
    let secrets = client.list(SECRETS, &Query::new().with("fieldSelector", format!("type={TYPE}"))).await?;
    let mut writer = Tabwriter::for_tables();
    writer.write("TOKEN\tTTL\tEXPIRES\tUSAGES\tDESCRIPTION\tEXTRA GROUPS\n");
    for secret in secrets["items"].as_array().into_iter().flatten() {
        writer.write(&format!("{}\n", row(secret, Timestamp::now()).join("\t")));
    }
    cx.print(&writer.flush())?;
    Ok(0)
}

fn row(secret: &Value, now: Timestamp) -> [String; 6] {
    let field = |name: &str| {
        let bytes = secret["data"][name].as_str().and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let expires = field("expiration");
    let ttl = match Timestamp::parse(&expires) {
        _ if expires.is_empty() => "<forever>".to_owned(),
        Some(at) if at > now => text::duration(at.since(now).as_secs() as i64 * 1_000_000_000),
        _ => "<invalid>".to_owned(),
    };
    let usages: Vec<&str> =
        ["authentication", "signing"].into_iter().filter(|usage| field(&format!("usage-bootstrap-{usage}")) == "true").collect();
    let expires = if expires.is_empty() { "<never>".to_owned() } else { expires };
    let token = format!("{}.{}", field("token-id"), field("token-secret"));
    [token, ttl, expires, or_none(usages.join(",")), or_none(field("description")), or_none(field("auth-extra-groups"))]
}

/// delete tokens, so that nobody joins with them any more
#[derive(FromArgs, ArgsInfo)]
pub struct DeleteFlags {
    /// tokens, or what stands before their points
    #[argh(positional)]
    tokens: Vec<String>,
}

pub async fn delete(cx: &Context, flags: DeleteFlags) -> Result<u8> {
    ensure!(!flags.tokens.is_empty(), "which token? 'edgectl token list' shows them");
    let (_, client) = connect(cx)?;
    for token in &flags.tokens {
        let id = token.split('.').next().unwrap_or(token);
        ensure!(id.len() == ID_CHARACTERS && id.bytes().all(|byte| ALPHABET.contains(&byte)), "{id:?} is no ID of a token");
        delete_secret(&client, id).await?;
        cx.println(&format!("bootstrap token {id:?} deleted"))?;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tokens_are_well_formed_and_differ() {
        let (one, other) = (Token::random(), Token::random());
        assert_eq!(Token::parse(&one.text()).unwrap(), one);
        assert_ne!(one, other);
        for text in ["", "abcdef", "abcdef.0123456789ABCDEF", "abcdef.0123456789abcde", "abcdefg.123456789abcdef0"] {
            assert!(Token::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_token_is_listed_with_the_time_it_has_left() {
        let encode = |text: &str| BASE64.encode(text);
        let mut secret = json!({"data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"), "usage-bootstrap-authentication": encode("true"),
            "expiration": encode("2026-01-01T01:30:00Z"), "auth-extra-groups": encode(GROUP),
        }});
        let now = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let expected = ["abcdef.0123456789abcdef", "1h30m0s", "2026-01-01T01:30:00Z", "authentication", "<none>", GROUP];
        assert_eq!(row(&secret, now), expected);
        secret["data"]["expiration"] = Value::Null;
        assert_eq!(row(&secret, now)[1..3], ["<forever>", "<never>"]);
    }
}
