//! Signing in to the console by a directory: a real OpenLDAP server on loopback, by StartTLS and by TLS from the start.

#![allow(clippy::unwrap_used)] // in helpers too: what fails there fails the test

#[path = "support/ports/mod.rs"]
mod ports;
#[path = "support/service/mod.rs"]
mod service;
#[path = "support/web/mod.rs"]
mod web;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gemel::peer::authority::self_signed;
use service::{Service, wait_until};
use web::{Answer, Web};

const PASSWORD: &str = "correct horse battery";
const OF_DIRECTORY: &str = "known-to-the-directory";

/// Anne is an administrator, Bob an operator, and Carl nothing here.
const ENTRIES: &str = "\
dn: dc=example,dc=org
objectClass: domain
dc: example

dn: ou=people,dc=example,dc=org
objectClass: organizationalUnit
ou: people

dn: uid=anne,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: anne
cn: Anne
sn: A
userPassword: known-to-the-directory

dn: uid=bob,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: B
userPassword: known-to-the-directory

dn: uid=carl,ou=people,dc=example,dc=org
objectClass: inetOrgPerson
uid: carl
cn: Carl
sn: C
userPassword: known-to-the-directory

dn: cn=storage-admins,dc=example,dc=org
objectClass: groupOfNames
cn: storage-admins
member: uid=anne,ou=people,dc=example,dc=org

dn: cn=it,dc=example,dc=org
objectClass: posixGroup
cn: it
gidNumber: 5000
memberUid: bob
";

/// A directory server.
struct Directory {
    process: Child,
    ports: [u16; 2],
    certificate: PathBuf,
}

impl Directory {
    fn start(folder: &Path) -> Self {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/slapd");
        let is_unpacked = unpacked.join("usr/sbin/slapd").exists();
        let root = if is_unpacked { unpacked } else { PathBuf::from("/") };
        assert!(root.join("usr/sbin/slapd").exists(), "slapd is missing: scripts/prerequisites.sh test");
        let command = |name: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(root.join("usr/sbin").join(name));
            if is_unpacked {
                let libraries =
                    format!("{0}/usr/lib/x86_64-linux-gnu:{0}/usr/lib/aarch64-linux-gnu", root.display());
                command.env("LD_LIBRARY_PATH", libraries);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        let (certificate, key) =
            self_signed(&["localhost".to_owned(), "127.0.0.1".to_owned()], next_year()).unwrap();
        for (name, text) in
            [("directory.pem", &certificate), ("directory.key", &key), ("entries", &ENTRIES.to_owned())]
        {
            std::fs::write(folder.join(name), text).unwrap();
        }
        std::fs::create_dir(folder.join("db")).unwrap();
        let schemas = ["core", "cosine", "nis", "inetorgperson"];
        let schemas =
            schemas.map(|name| format!("include {}/etc/ldap/schema/{name}.schema\n", root.display()));
        let (root_text, folder_text) = (root.display(), folder.display());
        let configuration = format!(
            "{}modulepath {root_text}/usr/lib/ldap\nmoduleload back_mdb\npidfile {folder_text}/slapd.pid\n\
             TLSCertificateFile {folder_text}/directory.pem\nTLSCertificateKeyFile {folder_text}/directory.key\n\
             security simple_bind=128\ndatabase mdb\nsuffix dc=example,dc=org\ndirectory {folder_text}/db\n\
             access to attrs=userPassword by anonymous auth by * none\naccess to * by users read by * none\n",
            schemas.concat()
        );
        let file = folder.join("slapd.conf");
        std::fs::write(&file, configuration).unwrap();
        let added =
            command("slapadd").arg("-f").arg(&file).arg("-l").arg(folder.join("entries")).status().unwrap();
        assert!(added.success(), "slapadd takes the entries");
        let ports = [ports::free_port(), ports::free_port()];
        let urls = format!("ldap://127.0.0.1:{} ldaps://127.0.0.1:{}", ports[0], ports[1]);
        let mut process = command("slapd").args(["-d", "0", "-h", &urls, "-f"]).arg(&file).spawn().unwrap();
        wait_until("the directory listens", || {
            assert!(process.try_wait().unwrap().is_none(), "slapd has ended");
            ports.iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        Self { process, ports, certificate: folder.join("directory.pem") }
    }

    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// `[ldap]` of a node that asks it at `url`.
    fn section(&self, url: &str, authority: &Path) -> String {
        format!(
            "[ldap]\nservers = [\"{url}\"]\nauthority = {:?}\nbind = \"uid={{user}},ou=people,dc=example,dc=org\"\n\
             base = \"dc=example,dc=org\"\nadministrators = [\"cn=none,dc=example,dc=org\", \"cn=storage-admins,dc=example,dc=org\"]\n\
             operators = [\"cn=it,dc=example,dc=org\"]\n",
            authority.display().to_string()
        )
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A day on which a certificate may end.
fn next_year() -> (i32, u8, u8) {
    let today = humantime::format_rfc3339(std::time::SystemTime::now()).to_string();
    (today[..4].parse::<i32>().unwrap() + 1, 12, 1)
}

fn web(service: &Service) -> Web {
    let address = SocketAddr::from(([127, 0, 0, 1], service.console));
    Web::new(address, &service.state_dir().join("console.pem"))
}

fn sign_in(service: &Service, name: &str, password: &str) -> (Web, Answer) {
    let mut web = web(service);
    let answer = web.post("/login", &[("name", name), ("password", password), ("next", "/")]);
    (web, answer)
}

fn add_user(service: &Service, name: &str, role: &str) {
    let file = service.folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    service.succeed(&["user", "add", name, "--role", role, "--password-file", &file.display().to_string()]);
}

#[test]
fn who_the_directory_knows_is_let_in_by_his_groups() {
    let place = tempfile::tempdir().unwrap();
    let mut directory = Directory::start(place.path());
    let mut service = Service::new(3);
    service.extra =
        directory.section(&format!("ldap://127.0.0.1:{}", directory.ports[0]), &directory.certificate);
    service.configure();
    service.format();
    service.start();

    let (mut anne, answer) = sign_in(&service, "Anne", OF_DIRECTORY);
    assert_eq!(answer.status, 303, "{answer:?}");
    assert_eq!(anne.get("/users").status, 200, "she is an administrator");
    let account = anne.get("/account").body;
    assert!(account.contains("those of the site") && !account.contains("/account/password"), "{account}");
    assert_eq!(anne.act("/volumes", "create_volume", &[("name", "data"), ("size_bytes", "16M")]).status, 303);
    let events = service.json(&["event", "list", "--limit", "100"]);
    let acts = events.iter().filter(|event| event["kind"] == "audit");
    let noted = acts.map(|event| event["message"].to_string()).collect::<String>();
    assert!(noted.contains("anne") && noted.contains("data"), "{noted}");

    let (mut bob, answer) = sign_in(&service, "bob", OF_DIRECTORY);
    assert_eq!((answer.status, bob.get("/users").status), (303, 403), "he is an operator");
    let (_, answer) = sign_in(&service, "carl", OF_DIRECTORY);
    assert!(answer.status == 403 && answer.body.contains("in none of the groups"), "{answer:?}");
    for (name, password) in [("anne", "wrong"), ("anne", ""), ("a*", OF_DIRECTORY), ("dora", OF_DIRECTORY)] {
        let (_, answer) = sign_in(&service, name, password);
        assert!(
            answer.status == 403 && answer.body.contains("name or the password is wrong"),
            "{name}: {answer:?}"
        );
    }

    // A user of the cluster goes before one of the directory, and needs no directory.
    add_user(&service, "bob", "viewer");
    assert_eq!(sign_in(&service, "bob", OF_DIRECTORY).1.status, 403);
    directory.end();
    assert_eq!(sign_in(&service, "bob", PASSWORD).1.status, 303);
    let (_, answer) = sign_in(&service, "anne", OF_DIRECTORY);
    assert!(answer.status == 503 && answer.body.contains("the directory cannot be asked"), "{answer:?}");
    assert_eq!(anne.get("/").status, 200, "who is signed in stays so for a while");
    assert!(!service.log().contains(OF_DIRECTORY), "a password in the log");
}

#[test]
fn a_directory_that_is_not_trusted_is_told_no_password() {
    let place = tempfile::tempdir().unwrap();
    let directory = Directory::start(place.path());
    let other = place.path().join("other.pem");
    std::fs::write(&other, self_signed(&["127.0.0.1".to_owned()], next_year()).unwrap().0).unwrap();
    let mut service = Service::new(3);
    let url = format!("ldaps://127.0.0.1:{}", directory.ports[1]);
    for (authority, status) in [(&directory.certificate, 303), (&other, 503)] {
        service.extra = directory.section(&url, authority);
        service.configure();
        if status == 303 {
            service.format();
        } else {
            service.end("-TERM");
        }
        service.start();
        let (_, answer) = sign_in(&service, "anne", OF_DIRECTORY);
        assert_eq!(answer.status, status, "{answer:?}");
    }
}
