//! `controller`: its mistakes, and what it says where there is no API server. What it does with one is tested in
//! `tests/cluster/controller`.

use crate::program::Folder;

const BEHIND: &str = "\nFor the flags and their defaults: callback-guard controller --help\n";

#[test]
fn every_mistake_is_reported_at_once_with_its_flag() {
    let folder = Folder::new();
    let line = "controller --own-namespace guard --namespaces shop,guard,kube-system --trust-namespaces guard --external-tls bar \
                --services app --services bar/app --services shop/A --cluster-domain Local --ca-lifetime 1h \
                --certificate-lifetime 40m --lease-duration 1500ms --set workers=0 --admin-listen 9090 --log-level loud \
                --log-format yaml --bogus";
    let ran = folder.run(line).code(2).out("");
    ran.problems_of(
        &[
            "--bogus",
            "--namespaces",
            "--namespaces",
            "--trust-namespaces",
            "--external-tls",
            "--services",
            "--services",
            "--services",
            "--cluster-domain",
            "--certificate-lifetime",
            "--lease-duration",
            "--set",
            "--admin-listen",
            "--log-level",
            "--log-format",
        ],
        BEHIND,
    )
    .err_has("--trust-namespaces: \"guard\" is --own-namespace, whose pods never get the CA\n")
    .err_has("--external-tls: \"bar\" is not in --namespaces\n")
    .err_has("--services: \"app\" is not NS/NAME of a Service\n")
    .err_has("--services: \"bar/app\": \"bar\" is not in --namespaces\n")
    .err_has("--cluster-domain: \"Local\" is not a domain, as in cluster.local\n")
    .err_has("--certificate-lifetime: is more than half of --ca-lifetime");
}

#[test]
fn bounds_of_times_are_checked() {
    let folder = Folder::new();
    for (flag, value, part) in [
        ("--ca-lifetime", "10s", "at least 20s is required"),
        ("--ca-lifetime", "1000000h", "at most 876000h is allowed"),
        ("--certificate-lifetime", "9s", "at least 10s is required"),
        ("--lease-duration", "2s", "at least 3s is required"),
        ("--lease-duration", "3500ms", "is not whole seconds"),
        ("--identity", "two words", "visible ASCII"),
    ] {
        let program = folder.program("controller --own-namespace guard");
        let variable =
            format!("CALLBACK_GUARD_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
        program.env(&variable, value).run().code(2).out("").problems_of(&[flag], BEHIND).err_has(part);
    }
    folder.run("controller").code(2).problems_of(&["--own-namespace"], BEHIND).err_has("is missing");
}
