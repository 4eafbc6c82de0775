//! Real connections between network namespaces: who is redirected, and what the proxy learns of it.

#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect ends")]
#![allow(clippy::print_stdout, reason = "a test that skips says so")]

mod pod;

use std::net::SocketAddr;

use mesh_redirect::{Ports, Redirect, RedirectError};

use self::pod::{PROXY_UID, Pod};

fn redirect() -> Redirect {
    Redirect {
        proxy_uid: PROXY_UID,
        inbound_port: 4143,
        outbound_port: 4140,
        skip_inbound_ports: Vec::new(),
        skip_outbound_ports: Vec::new(),
        skip_subnets: Vec::new(),
    }
}

/// The addresses of the two ends, which `pod` gives them.
const POD: [&str; 2] = ["10.9.0.1", "[fd09::1]"];
const WORLD: [&str; 2] = ["10.9.0.2", "[fd09::2]"];

fn at(ip: &str, port: u16) -> SocketAddr {
    format!("{ip}:{port}").parse().unwrap()
}

#[test]
fn outbound_connections_come_to_the_proxy_with_their_destination() {
    let Some(pod) = Pod::new("outbound") else { return };
    pod.listen_in_world(8080);
    pod.install(&redirect());
    for ip in WORLD {
        let to = at(ip, 8080);
        assert_eq!(pod.connect(to), format!("4140 {to}"));
        // Nobody listens there, which is for the proxy to find out.
        assert_eq!(pod.connect(at(ip, 9)), format!("4140 {}", at(ip, 9)));
        assert_eq!(pod.connect_as(PROXY_UID, to), "8080 direct");
    }
}

#[test]
fn what_stays_in_the_pod_is_left_alone() {
    let Some(pod) = Pod::new("loopback") else { return };
    pod.listen(8080);
    pod.install(&redirect());
    for ip in ["127.0.0.1", "127.9.9.9", "[::1]", POD[0], POD[1]] {
        assert_eq!(pod.connect(at(ip, 8080)), "8080 direct", "{ip}");
        assert_eq!(pod.connect_as(PROXY_UID, at(ip, 8080)), "8080 direct", "{ip}");
    }
}

#[test]
fn inbound_connections_come_to_the_proxy_with_their_destination() {
    let Some(pod) = Pod::new("inbound") else { return };
    pod.listen(8080);
    pod.listen(4191);
    pod.install(&redirect());
    for ip in POD {
        let to = at(ip, 8080);
        // The dual-stack listener says IPv4 as IPv4.
        assert_eq!(pod.connect_from_world(to), format!("4143 {to}"));
        assert_eq!(pod.connect_from_world(at(ip, 4191)), "4191 direct");
        assert_eq!(pod.connect_from_world(at(ip, 4143)), "4143 direct");
    }
}

#[test]
fn skipped_ports_and_subnets_are_reached_directly() {
    let Some(pod) = Pod::new("skipped") else { return };
    for port in [3306, 8080] {
        pod.listen_in_world(port);
    }
    for port in [22, 7999, 8000, 8010, 8011] {
        pod.listen(port);
    }
    pod.install(&Redirect {
        skip_inbound_ports: vec![Ports::one(22), "8000-8010".parse().unwrap()],
        skip_outbound_ports: vec![Ports::one(3306)],
        ..redirect()
    });
    for ip in WORLD {
        assert_eq!(pod.connect(at(ip, 3306)), "3306 direct");
        assert_eq!(pod.connect(at(ip, 8080)), format!("4140 {}", at(ip, 8080)));
    }
    for ip in POD {
        for port in [22, 8000, 8010] {
            assert_eq!(pod.connect_from_world(at(ip, port)), format!("{port} direct"));
        }
        for port in [7999, 8011] {
            let to = at(ip, port);
            assert_eq!(pod.connect_from_world(to), format!("4143 {to}"));
        }
    }
    for subnets in [["10.0.0.0/8", "fd00::/12"], ["10.9.0.2", "fd09::2"], ["0.0.0.0/0", "::/0"]] {
        let skip_subnets = subnets.map(|subnet| subnet.parse().unwrap()).to_vec();
        pod.install(&Redirect { skip_subnets, ..redirect() });
        for ip in WORLD {
            assert_eq!(pod.connect(at(ip, 8080)), "8080 direct", "{subnets:?}");
        }
    }
    let skip_subnets =
        ["10.9.0.3", "10.10.0.0/16", "fd09::3", "fd00::/16"].map(|subnet| subnet.parse().unwrap());
    pod.install(&Redirect { skip_subnets: skip_subnets.to_vec(), ..redirect() });
    for ip in WORLD {
        assert_eq!(pod.connect(at(ip, 8080)), format!("4140 {}", at(ip, 8080)));
    }
}

#[test]
fn twice_is_once_and_uninstall_leaves_nothing() {
    let Some(pod) = Pod::new("twice") else { return };
    pod.listen_in_world(8080);
    let to = at(WORLD[0], 8080);
    // Nothing to remove is no mistake.
    pod.inside(mesh_redirect::uninstall).unwrap();
    assert_eq!(pod.connect(to), "8080 direct");
    pod.install(&redirect());
    let once = pod.nft_list();
    pod.install(&redirect());
    assert_eq!(pod.nft_list(), once);
    assert_eq!(pod.connect(to), format!("4140 {to}"));
    pod.inside(mesh_redirect::uninstall).unwrap();
    assert_eq!(pod.nft_list(), None);
    assert_eq!(pod.connect(to), "8080 direct");
}

#[test]
fn nft_shows_the_rules_as_we_print_them() {
    let Some(pod) = Pod::new("shown") else { return };
    let ports = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let subnets = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.0.2.1",
        "10.1.2.0/23",
        "fd00::/8",
        "2001:db8::/33",
        "::1",
    ];
    let redirect = Redirect {
        skip_inbound_ports: ports(&["22", "8000-8010", "1-65535"]),
        skip_outbound_ports: ports(&["3306", "5432-5433"]),
        skip_subnets: subnets.map(|subnet| subnet.parse().unwrap()).to_vec(),
        ..redirect()
    };
    pod.install(&redirect);
    let Some(shown) = pod.nft_list() else {
        return pod::skipped("nft_shows_the_rules_as_we_print_them", "no nft");
    };
    // A small machine may have no /etc/protocols to name it by.
    let shown = shown.replace("l4proto 6 ", "l4proto tcp ");
    assert_eq!(shown, redirect.table().unwrap().to_string());
}

#[test]
fn the_largest_transaction_is_taken() {
    let Some(pod) = Pod::new("largest") else { return };
    let mut large =
        Redirect { skip_subnets: vec!["fd00::/8".parse().unwrap(); 1_000], ..redirect() };
    while large.table().is_err() {
        large.skip_subnets.pop();
    }
    assert!(large.skip_subnets.len() > 400);
    pod.install(&large);
}

#[test]
fn without_net_admin_nothing_is_done_and_the_remedy_is_told() {
    let Some(pod) = Pod::new("unprivileged") else { return };
    let refused = pod.inside_as(PROXY_UID, || mesh_redirect::install(&redirect()));
    assert!(matches!(refused, Err(RedirectError::NotPermitted)), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("NET_ADMIN"));
    assert_eq!(pod.nft_list(), None);
}
