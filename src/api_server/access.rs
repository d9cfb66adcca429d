//! How the API server is reached and how one is believed there: the service account of a pod, or a kubeconfig.
//!
//! `KUBECONFIG` wins where it is set, then the pod's own account, then `~/.kube/config`. What a kubeconfig may say and this
//! program does not do (a program that yields the token, a password, a certificate nobody checks) is told, not ignored.

use std::net::IpAddr;
use std::sync::{Arc, Once};
use std::{env, fs};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderValue, Uri};
use kube::Config;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret as _;
use tracing::warn;

use super::trouble::Place;
use crate::tls;

/// Where the API server is, and how to be believed there.
pub(super) struct Access {
    pub(super) url: Uri,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) namespace: String,
    pub(super) place: Arc<Place>,
    auth: AuthInfo,
}

impl Access {
    /// Looks for it, anew each time: a kubeconfig, an authority or a token may have been replaced.
    ///
    /// # Errors
    ///
    /// What was looked at and why it cannot be used, in a sentence without a secret.
    pub(super) async fn find() -> Result<Access, String> {
        if let Some(path) = env::var_os("KUBECONFIG").filter(|path| !path.is_empty()) {
            let from = format!("the kubeconfig {}", path.to_string_lossy());
            let (config, proxy) = of_kubeconfig().await.map_err(|error| {
                format!("{from} (KUBECONFIG) cannot be used: {}; check the file", plain(&error))
            })?;
            return Access::new(config, proxy, &from);
        }
        let in_pod = match Config::incluster() {
            Ok(config) => {
                return Access::new(
                    config,
                    None,
                    "the service account of this pod (KUBERNETES_SERVICE_HOST)",
                );
            }
            Err(error) => error,
        };
        match of_kubeconfig().await {
            Ok((config, proxy)) => Access::new(config, proxy, "the kubeconfig ~/.kube/config"),
            Err(error) => Err(format!(
                "no way to an API server: neither the service account of a pod ({in_pod}) nor a kubeconfig ({}) can be \
                 used; check that the pod has its token mounted at /var/run/secrets/kubernetes.io/serviceaccount, or \
                 set KUBECONFIG",
                plain(&error)
            )),
        }
    }

    fn new(config: Config, proxy: Option<String>, from: &str) -> Result<Access, String> {
        let auth = config.auth_info;
        let wrong = |what: String| format!("{from} cannot be used: {what}");
        if proxy.is_some_and(|proxy| !proxy.is_empty()) {
            // It may hold a password.
            return Err(wrong(
                "its cluster has a proxy-url, expected a server that is reached directly".to_owned(),
            ));
        }
        let missing_credential = auth.token.is_none() && auth.token_file.is_none();
        let certificate = auth.client_certificate.is_some() || auth.client_certificate_data.is_some();
        if missing_credential && !certificate {
            for (given, what) in [
                (auth.exec.is_some(), "a program (exec)"),
                (auth.auth_provider.is_some(), "an auth-provider"),
                (auth.username.is_some(), "a user name and a password"),
            ] {
                if given {
                    return Err(wrong(format!(
                        "its user is known by {what}, expected a token, a tokenFile or a client certificate"
                    )));
                }
            }
        }
        let url = config.cluster_url;
        let host = url.host().ok_or_else(|| wrong("its server names no host".to_owned()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = url.scheme_str() != Some("http");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            if config.accept_invalid_certs {
                return Err(wrong(
                    "it says insecure-skip-tls-verify, expected a certificate-authority".to_owned(),
                ));
            }
            let name = config.tls_server_name.unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|error| wrong(error.to_string()))?;
            let trust = trust(config.root_cert.unwrap_or_default(), &auth).map_err(wrong)?;
            Some((Arc::new(trust), name))
        } else {
            None
        };
        if !secure && !missing_credential && !is_loopback(&host) {
            warn_in_clear(from, &host);
        }
        let place = Place {
            address: format!("{}://{host}:{port}", if secure { "https" } else { "http" }),
            from: from.to_owned(),
            credential: match (&auth.token, &auth.token_file, certificate) {
                (Some(_), ..) => format!("the token in {from}"),
                (None, Some(file), _) => format!("the token in {file}"),
                (None, None, true) => format!("the client certificate of {from}"),
                (None, None, false) => format!("no credential at all, as {from} has none"),
            },
            authority: match &config.root_cert_file {
                Some(file) => file.display().to_string(),
                None => format!("the certificate-authority of {from}"),
            },
        };
        let namespace = config.default_namespace;
        Ok(Access { url, host, port, tls, namespace, place: Arc::new(place), auth })
    }

    /// The header to be believed by. The token file is read anew each time: the kubelet renews it within its hour.
    ///
    /// # Errors
    ///
    /// The file and why it cannot be read or used; never what is in it.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let (token, from) = match (&self.auth.token, &self.auth.token_file) {
            (Some(token), _) => (token.expose_secret().to_owned(), self.place.credential.clone()),
            (None, Some(file)) => {
                let token = fs::read_to_string(file)
                    .map_err(|error| format!("the token file {file} cannot be read: {error}"))?;
                (token, format!("the token file {file}"))
            }
            (None, None) => return Ok(None),
        };
        let token = token.trim();
        if token.is_empty() {
            return Err(format!("{from} is empty"));
        }
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| format!("{from} holds characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

/// What the kubeconfig says, and the proxy of its cluster: the one of a [`Config`] may as well be the environment's, which is for
/// other servers.
async fn of_kubeconfig() -> Result<(Config, Option<String>), KubeconfigError> {
    let kubeconfig = Kubeconfig::read()?;
    let context = kubeconfig.contexts.iter().find(|it| Some(&it.name) == kubeconfig.current_context.as_ref());
    let cluster = context.and_then(|it| it.context.as_ref()).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|it| Some(&it.name) == cluster);
    let proxy = cluster.and_then(|it| it.cluster.as_ref()).and_then(|cluster| cluster.proxy_url.clone());
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok((config, proxy))
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Once: the kubeconfig is read again for each connection.
fn warn_in_clear(from: &str, host: &str) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        warn!(
            host,
            "{from} has a server with http://: its token goes over the network in clear, and whoever answers there sets the \
             policy; use https:// with a certificate-authority"
        );
    });
}

/// The words of an error about a kubeconfig. Those about its YAML quote the lines around, where tokens stand.
fn plain(error: &KubeconfigError) -> String {
    // All others name a file, a context or the place of a byte.
    let KubeconfigError::Parse(error) = error else { return error.to_string() };
    match error.location() {
        Some(place) => format!("its YAML is broken at line {}", place.line()),
        None => "its YAML is broken".to_owned(),
    }
}

fn trust(roots: Vec<Vec<u8>>, auth: &AuthInfo) -> Result<ClientConfig, String> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.into())
            .map_err(|error| format!("its certificate authority cannot be read: {error}"))?;
    }
    if store.is_empty() {
        return Err(
            "it has no authority to know the API server by (ca.crt, or certificate-authority)".to_owned()
        );
    }
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(store);
    let data = |data: &Option<String>, file: &Option<String>| match (data, file) {
        (Some(data), _) => BASE64_STANDARD.decode(data).map(Some).map_err(|error| error.to_string()),
        (None, Some(file)) => fs::read(file).map(Some).map_err(|error| format!("{file}: {error}")),
        (None, None) => Ok(None),
    };
    let certificate = data(&auth.client_certificate_data, &auth.client_certificate)?;
    let key = auth.client_key_data.as_ref().map(|key| key.expose_secret().to_owned());
    let (Some(certificate), Some(key)) = (certificate, data(&key, &auth.client_key)?) else {
        return Ok(builder.with_no_client_auth());
    };
    let wrong = |error: &dyn std::fmt::Display| format!("its client certificate cannot be used: {error}");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(&error))?;
    builder.with_client_auth_cert(chain.map_err(|error| wrong(&error))?, key).map_err(|error| wrong(&error))
}
