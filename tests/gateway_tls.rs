use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::harness::{
    eventually,
    runtime::{CONFIG, TestRuntime, tool},
};

/// What OpenSSL needs to sign a certificate with dates of our choice.
const AUTHORITY: &str = "\
[ca]
default_ca = own
[own]
new_certs_dir = .
database = index.txt
serial = serial
default_md = sha256
policy = names
x509_extensions = place
[names]
commonName = supplied
[place]
subjectAltName = DNS:localhost, IP:127.0.0.1
[req]
distinguished_name = nothing
[nothing]
";

/// Makes a certificate for `localhost` that is signed by its own key, with these dates; its files.
fn certificate(directory: &Path, name: &str, dates: &[&str]) -> (PathBuf, PathBuf) {
    let [certificate, key, request] =
        ["crt", "key", "csr"].map(|kind| directory.join(format!("{name}.{kind}")));
    // A place of its own, because OpenSSL remembers there what it has signed.
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("own.cnf"), AUTHORITY).unwrap();
    std::fs::write(place.path().join("index.txt"), "").unwrap();
    let openssl = |verb: &str, arguments: &[&str], files: &[(&str, &PathBuf)]| {
        let mut command = Command::new("openssl");
        command.current_dir(place.path()).arg(verb).args(["-config", "own.cnf"]).args(arguments);
        for (flag, path) in files {
            command.arg(flag).arg(path);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let subject = format!("/CN={name}");
    let new =
        ["-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-subj", &subject];
    openssl("req", &new, &[("-out", &request), ("-keyout", &key)]);
    let sign: Vec<&str> =
        ["-batch", "-selfsign", "-notext", "-create_serial"].iter().chain(dates).copied().collect();
    openssl("ca", &sign, &[("-keyfile", &key), ("-in", &request), ("-out", &certificate)]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    (certificate, key)
}

fn settings(certificate: &Path, key: &Path) -> String {
    format!("tls_certificate = \"{}\"\ntls_key = \"{}\"\n", certificate.display(), key.display())
}

/// What Python's own TLS sees: status and body of an answer, or why there is none.
fn over_tls(url: &str, trusted: &Path, token: &str) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/tls.py");
    let output =
        Command::new("python3").arg(script).args([url, trusted.to_str().unwrap(), token]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The URL of a gateway that speaks TLS, once it answers there.
fn started(runtime: &TestRuntime, certificate: &Path) -> String {
    eventually("an answer over TLS", || {
        let url = runtime.url("")?;
        let answer = over_tls(&url, certificate, &runtime.token()?);
        (answer["status"] == 200).then_some(url)
    })
}

#[test]
pub(crate) fn with_a_certificate_the_gateway_speaks_tls_and_everything_that_names_it_says_so() {
    let place = tempfile::tempdir().unwrap();
    let (first, key) = certificate(place.path(), "first", &["-days", "2"]);
    let (stranger, _) = certificate(place.path(), "stranger", &["-days", "2"]);
    let runtime =
        TestRuntime::begin_with(&format!("host_names = [\"localhost\"]\n{}", settings(&first, &key)), |_| ());
    let url = started(&runtime, &first);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let token = runtime.token().unwrap();
    let answer = over_tls(&url, &first, &token);
    assert!(["TLSv1.3", "TLSv1.2"].contains(&answer["version"].as_str().unwrap()), "{answer}");
    assert_eq!(answer["subject"], "first");
    let status = runtime.status();
    assert_eq!(status["instance"]["gateway"].as_str(), Some(url.as_str()));
    let shown = runtime.interlock(&["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&format!("listening on {url}")), "{shown:?}");
    // HSTS for names that were given, and never where it would bind the other servers of an address.
    let by_name = url.replace("127.0.0.1", "localhost");
    assert!(over_tls(&by_name, &first, &token)["hsts"].as_str().unwrap().contains("max-age"));
    assert!(over_tls(&url, &first, &token)["hsts"].is_null());
    assert!(
        over_tls(&url, &stranger, &token)["error"].as_str().unwrap().contains("CERTIFICATE_VERIFY_FAILED")
    );
    assert!(runtime.http().get(url.replace("https", "http")).send().is_err(), "it answers without TLS, too");

    // Another certificate is taken without a restart, and one that does not fit is not.
    let (second, second_key) = certificate(place.path(), "second", &["-days", "2"]);
    std::fs::copy(&second, &first).unwrap();
    eventually("the mistake in the status", || {
        let text = runtime.interlock(&["status"]).stdout;
        String::from_utf8_lossy(&text).contains("is not for the key").then_some(())
    });
    std::fs::copy(&second_key, &key).unwrap();
    eventually("the new certificate", || {
        (over_tls(&url, &second, &token)["subject"] == "second").then_some(())
    });
}

#[test]
pub(crate) fn a_certificate_or_key_that_cannot_be_used_is_refused_at_the_start_and_by_check_with_the_reason()
{
    let place = tempfile::tempdir().unwrap();
    let (good, key) = certificate(place.path(), "good", &["-days", "2"]);
    let (other, _) = certificate(place.path(), "other", &["-days", "2"]);
    let times = ["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"];
    let (expired, expired_key) = certificate(place.path(), "expired", &times);
    let times = ["-startdate", "20700101000000Z", "-enddate", "20710101000000Z"];
    let (early, early_key) = certificate(place.path(), "early", &times);
    let open = place.path().join("open.key");
    std::fs::copy(&key, &open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let nothing = place.path().join("nothing.pem");
    std::fs::write(&nothing, "hello\n").unwrap();
    std::fs::set_permissions(&nothing, std::fs::Permissions::from_mode(0o600)).unwrap();
    let missing = place.path().join("missing.pem");
    for (certificate, key, part) in [
        (&expired, &expired_key, "has expired"),
        (&early, &early_key, "is not valid yet"),
        (&other, &key, "is not for the key in"),
        (&good, &open, "chmod 600"),
        (&nothing, &key, "holds no certificate in PEM"),
        (&good, &nothing, "holds no private key in PEM"),
        (&missing, &key, "missing.pem"),
        (&good, &missing, "missing.pem"),
    ] {
        let config = place.path().join("interlock.toml");
        std::fs::write(&config, format!("{CONFIG}{}", settings(certificate, key))).unwrap();
        for verb in ["check", "run"] {
            let mut command = tool("interlock");
            command.arg(verb).arg("--config").arg(&config).arg("--data-dir").arg(place.path().join("data"));
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{verb} {part}: {output:?}");
            assert!(text.contains(part) && text.contains("gateway.tls_"), "{verb}: {text}");
        }
    }
    // One without the other, and none where others can listen.
    for (text, code, part) in [
        (format!("tls_key = \"{}\"\n", key.display()), 2, "TLS needs both"),
        (String::new(), 0, "without TLS"),
    ] {
        let config = place.path().join("interlock.toml");
        let open = CONFIG.replace("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:0\"");
        std::fs::write(&config, format!("{open}{text}")).unwrap();
        let mut command = tool("interlock");
        command.arg("check").arg("--config").arg(&config).arg("--data-dir").arg(place.path().join("data"));
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(part), "{output:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let open = CONFIG.replace("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:0\"");
    std::fs::write(directory.path().join("interlock.toml"), open).unwrap();
    std::fs::create_dir(directory.path().join("tmp")).unwrap();
    let runtime = TestRuntime::on(directory);
    eventually("the warning in the status", || {
        let text = runtime.interlock(&["status"]).stdout;
        String::from_utf8_lossy(&text).contains("WITHOUT TLS").then_some(())
    });
}
