//! Networks of containers: `host`, `none` and `private`. From a private network, the host, its neighbours and the
//! metadata service of its cloud are unreachable. Cases: `assets/docs/security.md#network-of-a-container`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::fixture::{Place, seeded, shared, shared_box};
use crate::outside::{self, METADATA, Outside, PORT};
use crate::procs::{self, secs, wait_for};
use crate::server::{self, NIL, Server, Setup};

#[track_caller]
fn network(place: &Place<'_>) -> Value {
    place.client.get(200, &place.path("/debug"))["machine"]["network"].clone()
}

/// The reply of a server to a container, with the address of the caller as the server saw it; `None` without a reply.
#[track_caller]
fn get(place: &Place<'_>, address: &str, port: u16) -> Option<String> {
    let script =
        format!("exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
    let reply = place.exec(json!({"args": ["timeout", "2", "bash", "-c", script]}));
    let answer = reply["stdout"].as_str().unwrap().trim().to_owned();
    answer.rsplit_once("caller ").map(|(_, caller)| caller.to_owned())
}

/// Starts a server in a container that greets every caller.
#[track_caller]
fn serve_inside(place: &Place<'_>, port: u16) {
    let script = format!(
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => {port}, Listen => 5, \
         ReuseAddr => 1) or die; open(F, '>/tmp/serving'); close F; while (my $c = $s->accept) {{ sysread($c, my $b, 1000); print $c \"caller x\\n\"; close $c }}"
    );
    let quoted = script.replace('\'', "'\\''");
    place.sh(&format!("rm -f /tmp/serving; setsid perl -e '{quoted}' >/tmp/log 2>&1 </dev/null & true"));
    wait_for("a server in the container", secs(10), || {
        (place.exec(json!({"command": "test -e /tmp/serving"}))["exit_code"] == 0).then_some(())
    });
}

fn hello_from(address: &str, port: u16) -> Option<String> {
    let to = format!("{address}:{port}").parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&to, secs(2)).ok()?;
    stream.set_read_timeout(Some(secs(2))).unwrap();
    stream.write_all(b"x").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The host's ends of the links of a server, found by the hash of its data folder in their names.
fn links(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").unwrap().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn tables() -> String {
    server::run(Command::new("nft").args(["list", "tables"]), secs(10)).stdout
}

/// Returns `vbabcdef-` and `berth-abcdef` of a server, derived from one of its links.
fn names(network: &Value) -> (String, String) {
    let interface = network["interface"].as_str().unwrap();
    let instance = interface.strip_prefix("vb").unwrap().split('-').next().unwrap();
    (format!("vb{instance}-"), format!("berth-{instance}"))
}

#[test]
fn a_private_network_reaches_the_outside_but_not_the_host() {
    let outside = Outside::open();
    let port = outside::on_the_host();
    let server = shared();
    let place = Place::ready(server, json!({"name": "private", "network": "private"}));
    // The host translates the source address: other machines have no route to a container.
    assert_eq!(get(&place, &outside.address, PORT).as_deref(), Some(outside.host.as_str()));

    let reply = network(&place);
    assert_eq!(reply["mode"], "private", "{reply}");
    let address = reply["address"].as_str().unwrap();
    // Check of the test itself: the host can reach all of these.
    assert!(outside.get(METADATA).is_some());
    let mut own = outside::own_addresses();
    // Addresses of other tests appear and disappear.
    own.retain(|host| hello_from(host, port).is_some());
    for host in ["127.0.0.1", &outside.host, reply["gateway"].as_str().unwrap()] {
        assert!(own.iter().any(|own| own == host), "{host} is not in {own:?}");
    }
    for host in &own {
        assert_eq!(get(&place, host, port), None, "{host} of the host is reachable from a private network");
    }
    assert_eq!(get(&place, METADATA, PORT), None);
    for berth in &own {
        let connect_script = format!("exec 3<>/dev/tcp/{berth}/{}", server.address.port());
        assert_ne!(
            place.exec(json!({"args": ["timeout", "2", "bash", "-c", connect_script]}))["exit_code"],
            0,
            "{berth}"
        );
    }
    // Refused connections fail at once.
    let started = std::time::Instant::now();
    place.exec(json!({"args": ["bash", "-c", format!("exec 3<>/dev/tcp/{METADATA}/80")]}));
    assert!(started.elapsed() < secs(2), "{:?}", started.elapsed());
    // The container has its own loopback, and may use low ports.
    serve_inside(&place, 80);
    assert_eq!(get(&place, "127.0.0.1", 80).as_deref(), Some("x"));
    assert_eq!(get(&place, address, 80).as_deref(), Some("x"));
    // The host can reach servers in the container.
    assert_eq!(hello_from(address, 80).as_deref(), Some("caller x\n"));
    assert_eq!(place.sh("cat /proc/net/if_inet6"), "", "IPv6 is off");
}

#[test]
fn root_in_a_container_cannot_change_a_private_network() {
    let place = Place::ready(shared(), json!({"name": "private root", "network": "private"}));
    let refused = |what: &str, command: &str| {
        let reply = place.exec(json!({"command": command, "timeout_secs": 20}));
        assert_ne!(reply["exit_code"], 0, "{what}: {reply}");
    };
    refused("IPv6", "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
    refused("sysctl", "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start");
    refused("mounting it again", "mount -o remount,rw /proc/sys && echo 1 >/proc/sys/net/ipv4/ip_forward");
    // AF_INET raw, AF_PACKET: neither foreign source addresses nor foreign packets.
    refused("a raw socket", "perl -e 'socket(S, 2, 3, 255) or exit 1'");
    refused("a packet socket", "perl -e 'socket(S, 17, 3, 0x300) or exit 1'");
    // SIOCSIFADDR on host0.
    refused(
        "another address",
        "perl -e 'socket(S, 2, 2, 0); exit(ioctl(S, 0x8916, my $r = pack(\"a16 S n C4 x8\", \"host0\", 2, 0, 10, 9, 9, 9)) ? 0 : 1)'",
    );
    // The namespace of a process of the host cannot be entered.
    refused(
        "the host's namespace",
        "nsenter --net=/proc/1/ns/net true && readlink /proc/1/ns/net | grep -qv $(readlink /proc/self/ns/net)",
    );
    let pinged = place.exec(json!({"command": "perl -e 'socket(S, 2, 2, 1) or exit 1'"}));
    assert_eq!(pinged["exit_code"], 0, "ping needs no raw socket: {pinged}");
}

#[test]
fn private_networks_cannot_reach_each_other() {
    let server = shared();
    let one = Place::ready(server, json!({"name": "one", "network": "private"}));
    let two = Place::ready(server, json!({"name": "two", "network": "private"}));
    for place in [&one, &two] {
        serve_inside(place, 8000);
    }
    let (first, second) = (network(&one), network(&two));
    assert_ne!(first["address"], second["address"]);
    for (place, other) in [(&one, &second), (&two, &first)] {
        let other = other["address"].as_str().unwrap();
        assert_eq!(hello_from(other, 8000).as_deref(), Some("caller x\n"));
        assert_eq!(get(place, other, 8000), None, "{other} of a neighbour is reachable");
    }
    // A workspace keeps its address across restarts.
    two.client.post(200, &two.path("/stop"), json!({}));
    two.sh("true");
    assert_eq!(network(&two)["address"], second["address"]);
    // Tables, links and addresses of other servers are ignored; those of this server are removed with it.
    let (prefix, _) = names(&second);
    let link = second["interface"].as_str().unwrap().to_owned();
    assert!(links(&prefix).contains(&link));
    two.client.post(200, &two.path("/stop"), json!({}));
    assert!(!links(&prefix).contains(&link), "{link} remains");
}

#[test]
fn network_none_has_no_interfaces_and_host_shares_those_of_the_host() {
    let place = Place::ready(shared(), json!({"name": "closed", "network": "none"}));
    assert_eq!(place.show()["shared_network"], false);
    let interfaces = "cut -d: -f1 /proc/net/dev | tail -n +3 | tr -d ' '";
    assert_eq!(place.sh(interfaces).trim(), "lo");
    assert_eq!(network(&place), json!({"mode": "none"}));
    let open = shared_box();
    open.sh("true");
    assert_eq!(network(&open)["mode"], "host");
}

/// Public routes stay public; everything else needs a token, also for clients on the host's loopback.
#[test]
fn a_container_on_the_host_network_needs_a_token() {
    let setup = seeded();
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "guest"}));
    assert_eq!(place.show()["network"], "host");
    let port = server.address.port();
    let ask = |request: &str| {
        let script =
            format!("exec 3<>/dev/tcp/127.0.0.1/{port} && printf '{request}' >&3 && timeout 5 cat <&3");
        place.exec(json!({"args": ["bash", "-c", script]}))["stdout"].as_str().unwrap().to_owned()
    };
    let head = format!("Host: 127.0.0.1:{port}\\r\\nConnection: close\\r\\n");
    for request in [
        format!("GET /api/workspaces HTTP/1.1\\r\\n{head}\\r\\n"),
        format!("GET /workspaces HTTP/1.1\\r\\n{head}\\r\\n"),
        format!("GET /api/doctor HTTP/1.1\\r\\n{head}\\r\\n"),
        format!("GET /approvals HTTP/1.1\\r\\n{head}\\r\\n"),
        format!(
            "POST /api/workspaces/{NIL}/exec HTTP/1.1\\r\\n{head}Content-Length: 18\\r\\n\\r\\n{{\"command\":\"true\"}}"
        ),
    ] {
        let answer = ask(&request);
        assert!(answer.starts_with("HTTP/1.1 401"), "{request}: {answer}");
    }
    // Sockets with a path are not visible to the container; abstract ones (`@…`) would be, so the server must have
    // none.
    let socket_pids =
        |text: &str| text.lines().filter(|line| line.contains(" @")).map(str::to_owned).collect::<Vec<_>>();
    let inside = socket_pids(&place.sh("cat /proc/net/unix"));
    let data = server.data.to_string_lossy().into_owned();
    for line in &inside {
        assert!(!line.contains("berth") && !line.contains(&data), "{line}");
    }
    let ours: Vec<String> = fs::read_dir(format!("/proc/{}/fd", server.pid))
        .unwrap()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    // The kernel assigns names to the connecting ends on which the server requests credentials (unix(7), autobind):
    // they cannot be connected to.
    for line in socket_pids(&fs::read_to_string("/proc/net/unix").unwrap()) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        if ours.iter().any(|own| own == columns[6]) {
            let call =
                "use Socket; socket(S, 1, 1, 0); exit(connect(S, sockaddr_un(\"\\0$ARGV[0]\")) ? 0 : 1)";
            let reply = place.exec(json!({"args": ["perl", "-e", call, &columns[7][1..]]}));
            assert_eq!(reply["exit_code"], 1, "an abstract socket of the server answers: {line} {reply}");
        }
    }
    // No file of the data folder is visible inside.
    assert_ne!(place.exec(json!({"command": format!("ls {data}")}))["exit_code"], 0);
}

#[test]
fn networks_of_a_killed_server_are_adopted_or_removed() {
    let outside = Outside::open();
    let setup = seeded();
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "survivor", "network": "private"}));
    let dying = Place::ready(&server, json!({"name": "dying", "network": "private"}));
    dying.sh("true");
    assert!(get(&place, &outside.address, PORT).is_some());
    let before = network(&place);
    let (prefix, table) = names(&before);
    assert!(tables().contains(&table) && links(&prefix).len() == 2, "{} {:?}", tables(), links(&prefix));
    let (id, dying_id) = (place.id.clone(), dying.id.clone());
    let init = |place: &Place<'_>| {
        place.client.get(200, &place.path("/debug"))["machine"]["init_pid"].as_u64().unwrap()
    };
    let dying_init = init(&dying) as u32;
    std::mem::forget((place, dying));
    server.crash();
    // While no server is running, one container ends and the firewall is reloaded.
    procs::signal(dying_init, rustix::process::Signal::KILL);
    let dropped = server::run(Command::new("nft").args(["delete", "table", "inet", &table]), secs(10));
    assert_eq!(dropped.code, Some(0), "{dropped:?}");

    let server = setup.start();
    let list = server.owner().get(200, "/api/workspaces");
    let again = |id: &str| {
        let created = list.as_array().unwrap().iter().find(|one| one["id"] == id).unwrap();
        Place::of(&server, created)
    };
    let (place, dying) = (again(&id), again(&dying_id));
    let now = place.client.get(200, &place.path("/debug"));
    assert_eq!(now["machine"]["adopted"], true, "{now}");
    assert_eq!(now["machine"]["network"], before);
    assert!(get(&place, &outside.address, PORT).is_some(), "it cannot reach the outside");
    assert_eq!(get(&place, METADATA, PORT), None);
    assert_eq!(links(&prefix), [before["interface"].as_str().unwrap()]);
    assert_ne!(network(&dying)["mode"], "private");
    place.client.post(200, &place.path("/stop"), json!({}));
    assert!(links(&prefix).is_empty() && !tables().contains(&table), "{:?} {}", links(&prefix), tables());
    assert!(get(&dying, &outside.address, PORT).is_some());

    // Now no container remains to be adopted.
    let init = init(&dying) as u32;
    std::mem::forget((place, dying));
    server.crash();
    procs::signal(init, rustix::process::Signal::KILL);
    let server = setup.start();
    assert!(links(&prefix).is_empty() && !tables().contains(&table), "{:?} {}", links(&prefix), tables());
    server.stop();
}

#[test]
fn stopping_the_server_removes_its_networks() {
    let setup = seeded();
    let server = setup.start();
    let place = Place::ready(&server, json!({"name": "brief", "network": "private"}));
    place.sh("true");
    let (prefix, table) = names(&network(&place));
    assert!(tables().contains(&table));
    std::mem::forget(place);
    server.stop();
    assert!(links(&prefix).is_empty() && !tables().contains(&table), "{:?} {}", links(&prefix), tables());
    assert!(!setup.data_dir().join("network.json").exists());
}

/// `nft flush ruleset` removes the host's table; the rules in the container's own namespace stay in force.
#[test]
fn rules_inside_the_container_survive_a_firewall_reload() {
    let outside = Outside::open();
    let setup = seeded();
    let server = setup.start();
    let one = Place::ready(&server, json!({"name": "one", "network": "private"}));
    let two = Place::ready(&server, json!({"name": "two", "network": "private"}));
    two.sh("true");
    serve_inside(&one, 8000);
    let (_, table) = names(&network(&one));
    let dropped = server::run(Command::new("nft").args(["delete", "table", "inet", &table]), secs(10));
    assert_eq!(dropped.code, Some(0), "{dropped:?}");
    assert_eq!(get(&one, METADATA, PORT), None);
    assert_eq!(get(&two, network(&one)["address"].as_str().unwrap(), 8000), None);
    assert_eq!(get(&one, network(&one)["gateway"].as_str().unwrap(), server.address.port()), None);
    two.client.post(200, &two.path("/stop"), json!({}));
    two.sh("true");
    assert!(tables().contains(&table));
    assert!(get(&one, &outside.address, PORT).is_some());
}

#[test]
fn a_private_range_in_use_is_refused() {
    let outside = Outside::open();
    let range = format!(
        "{}/30",
        outside.host.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()
            + &{
                let last: u8 = outside.host.rsplit('.').next().unwrap().parse().unwrap();
                (last & !3).to_string()
            }
    );
    let server = seeded().arg(format!("--private-range={range}")).start();
    let place = Place::pending(&server, json!({"name": "nowhere", "network": "private"}));
    place.build();
    let reply = place.client.refused(
        503,
        "unavailable",
        "POST",
        &place.path("/exec"),
        Some(json!({"command": "true"})),
    );
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains(&range) && message.contains("--private-range"), "{message}");
    drop(place);
    server.stop();

    // The range has room for one link; the second workspace does not get the address of the first.
    let server = seeded().arg("--private-range=10.250.77.0/30").arg("--private-dns=198.51.100.53").start();
    let first = Place::ready(&server, json!({"name": "first", "network": "private"}));
    assert_eq!(first.sh("grep -v '^#' /etc/resolv.conf | head -1"), "nameserver 198.51.100.53\n");
    assert_eq!(network(&first)["address"], "10.250.77.2");
    let second = Place::ready(&server, json!({"name": "second", "network": "private"}));
    let reply = second.client.refused(
        503,
        "unavailable",
        "POST",
        &second.path("/exec"),
        Some(json!({"command": "true"})),
    );
    assert!(reply["message"].as_str().unwrap().contains("in use"), "{reply}");
    first.client.post(200, &first.path("/stop"), json!({}));
    assert_eq!(second.sh("echo room"), "room\n");
}

/// Command prefix that hides these programs from one server.
fn without(programs: &str) -> Vec<String> {
    let hide = format!(
        "for p in {programs}; do for f in /usr/sbin /sbin; do \
         [ ! -e $f/$p ] || mount --bind /dev/null $(readlink -f $f/$p); done; done; exec \"$@\""
    );
    ["unshare", "--mount", "sh", "-c", &hide, "sh"].map(str::to_owned).to_vec()
}

#[track_caller]
fn start_without(setup: &Setup, programs: &str) -> Server {
    let wrapper = without(programs);
    setup.start_through(&wrapper.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Rules of iptables that contain this name.
fn iptables_rules(table: &str) -> Vec<String> {
    let reply = server::run(&mut Command::new("iptables-save"), secs(10));
    assert_eq!(reply.code, Some(0), "{reply:?}");
    reply.stdout.lines().filter(|line| line.contains(table)).map(str::to_owned).collect()
}

#[test]
fn iptables_is_used_without_nft() {
    let outside = Outside::open();
    let port = outside::on_the_host();
    let setup = seeded();
    let server = start_without(&setup, "nft");
    let one = Place::ready(&server, json!({"name": "one", "network": "private"}));
    let two = Place::ready(&server, json!({"name": "two", "network": "private"}));
    two.sh("true");
    serve_inside(&one, 8000);
    let before = network(&one);
    let (prefix, table) = names(&before);
    assert!(!tables().contains(&format!("inet {table}")), "{}", tables());
    let rules = iptables_rules(&table);
    assert_eq!(rules.iter().filter(|rule| rule.contains("-j berth-")).count(), 4, "{rules:#?}");

    let check = |place: &Place<'_>, neighbour: &str| {
        assert_eq!(get(place, &outside.address, PORT).as_deref(), Some(outside.host.as_str()));
        let mut own = outside::own_addresses();
        own.retain(|host| hello_from(host, port).is_some());
        assert!(own.contains(&outside.host) && own.iter().any(|own| own == "127.0.0.1"), "{own:?}");
        for host in &own {
            assert_eq!(
                get(place, host, port),
                None,
                "{host} of the host is reachable from a private network"
            );
        }
        assert_eq!(get(place, METADATA, PORT), None);
        assert_eq!(get(place, neighbour, 8000), None, "{neighbour} of a neighbour is reachable");
        let started = std::time::Instant::now();
        place.exec(json!({"args": ["bash", "-c", format!("exec 3<>/dev/tcp/{METADATA}/80")]}));
        assert!(
            started.elapsed() < secs(2),
            "the connection was not refused at once: {:?}",
            started.elapsed()
        );
    };
    let address = before["address"].as_str().unwrap().to_owned();
    assert_eq!(hello_from(&address, 8000).as_deref(), Some("caller x\n"));
    check(&two, &address);
    assert_eq!(get(&one, "127.0.0.1", 8000).as_deref(), Some("x"));

    // Networks of a killed server are adopted, and the iptables rules are not forgotten although nft is available now.
    let (id, other) = (one.id.clone(), two.id.clone());
    std::mem::forget((one, two));
    server.crash();
    let server = setup.start();
    let list = server.owner().get(200, "/api/workspaces");
    let again = |id: &str| {
        let created = list.as_array().unwrap().iter().find(|one| one["id"] == id).unwrap();
        Place::of(&server, created)
    };
    let (one, two) = (again(&id), again(&other));
    assert_eq!(network(&one), before);
    assert!(tables().contains(&format!("inet {table}")), "{}", tables());
    check(&two, &address);
    std::mem::forget((one, two));
    server.stop();
    assert!(links(&prefix).is_empty(), "{:?}", links(&prefix));
    assert_eq!((iptables_rules(&table), tables().contains(&table)), (Vec::new(), false));
    assert!(!setup.data_dir().join("network.json").exists());
}

#[test]
fn missing_network_tools_are_reported_at_once() {
    let server = start_without(&seeded(), "nft iptables");
    let place = Place::pending(&server, json!({"name": "no tools", "network": "private"}));
    let reply = place.client.refused(503, "unavailable", "POST", &place.path("/build"), None);
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains("nft is missing") && message.contains("nftables"), "{message}");
    assert!(message.contains("iptables could be used instead"), "{message}");
    place.client.put(200, &place.path(""), json!({"network": "host"}));
    place.build();
    place.sh("true");
}

#[test]
fn network_and_shared_network_agree() {
    let server = Server::start();
    let owner = server.owner();
    let make = |extra: Value| {
        let mut body = json!({"name": "w", "workspace_type": "container"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let created = owner.post(200, "/api/workspaces", body);
        let url = format!("/api/workspaces/{}", created["id"].as_str().unwrap());
        (created["network"].clone(), created["shared_network"].clone(), url)
    };
    for (given, network, shared) in [
        (json!({}), "host", Value::Null),
        (json!({"network": null, "shared_network": null}), "host", Value::Null),
        (json!({"shared_network": true}), "host", json!(true)),
        (json!({"shared_network": false}), "private", json!(false)),
        (json!({"network": "host"}), "host", json!(true)),
        (json!({"network": "none"}), "none", json!(false)),
        (json!({"network": "private"}), "private", json!(false)),
        (json!({"network": "none", "shared_network": false}), "none", json!(false)),
    ] {
        let (is, shows, _) = make(given.clone());
        assert_eq!((is, shows), (json!(network), shared), "{given}");
    }
    let contradiction =
        json!({"name": "w", "workspace_type": "container", "network": "host", "shared_network": false});
    owner.refused(400, "invalid_payload", "POST", "/api/workspaces", Some(contradiction));
    let (_, _, url) = make(json!({"network": "none"}));
    assert_eq!(owner.put(200, &url, json!({"shared_network": false}))["network"], "none");
    assert_eq!(owner.put(200, &url, json!({"shared_network": true}))["network"], "host");
    let put = owner.put(200, &url, json!({"network": "private"}));
    assert_eq!((&put["network"], &put["shared_network"]), (&json!("private"), &json!(false)));
    owner.refused(400, "invalid_payload", "PUT", &url, Some(json!({"network": "bridge"})));

    let host = json!({"name": "h", "workspace_type": "host", "network": "private"});
    owner.refused(400, "not_a_container", "POST", "/api/workspaces", Some(host));
    let stored = owner.post(200, "/api/workspaces", json!({"name": "h", "shared_network": false}));
    assert_eq!((&stored["network"], &stored["shared_network"]), (&json!("host"), &json!(false)));
}
