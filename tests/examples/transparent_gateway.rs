//! The example of a transparent gateway, under a real systemd, between a client's and a server's
//! machine.

use crate::harness::{field, tool};
use crate::systemd_units::{lines, under_systemd};

/// A network of three machines, of which this one is the gateway. A server says by whom it was
/// reached.
const NETWORK: &str = r#"
mkdir -p /run/netns
join() {
    ip netns add "$1"
    ip link add "$2" type veth peer name up0 netns "$1"
    ip address add "$3/24" dev "$2"
    ip address add "$4/64" dev "$2" nodad
    ip link set "$2" up
    ip -n "$1" address add "$5/24" dev up0
    ip -n "$1" address add "$6/64" dev up0 nodad
    ip -n "$1" link set up0 up
    ip -n "$1" route add default via "$3"
    ip -n "$1" route add default via "$4"
}
join client eth1 192.0.2.1 2001:db8:1::1 192.0.2.7 2001:db8:1::7
join server eth2 198.51.100.1 2001:db8:2::1 198.51.100.9 2001:db8:2::9
# Where with-systemd has /proc/sys, it cannot be written.
mkdir /run/proc
mount -t proc proc /run/proc
echo 1 >/run/proc/sys/net/ipv4/ip_forward
for port in 25 80 8080; do
    ip netns exec server socat TCP6-LISTEN:$port,ipv6only=0,fork,reuseaddr \
        SYSTEM:'echo $SOCAT_PEERADDR $SOCAT_SOCKADDR $SOCAT_SOCKPORT' &
done
ask_server() { ip netns exec client timeout 20 socat -u "TCP:$1" - 2>&1; }
mkdir /etc/tcpproxy
cp examples/transparent-gateway.nft /etc/tcpproxy/
"#;

#[test]
fn the_gateway_is_seen_by_neither_end_and_lets_nothing_past() {
    for name in ["nft", "ip"] {
        tool(name);
    }
    let text = under_systemd(
        &(NETWORK.to_owned()
            + r#"
unit=transparent-gateway.service
listening() { ip netns exec server ss -Hltn 'sport = :80' | grep -q .; }
eventually listening
systemctl start $unit
eventually listens 8080
echo "reply: $(ask_server 198.51.100.9:80)"
echo "reply: $(ask_server '[2001:db8:2::9]:25')"
eventually says ' closed: ' 2
# It is not in the way of services of the gateway's own, and of what else clients reach.
echo "direct: $(ask_server 192.0.2.1:80 || true)"
echo "other: $(ask_server 198.51.100.9:8080)"
journal -u $unit
systemctl stop $unit
echo "rules: $(ip rule list fwmark 1)$(ip -6 rule list fwmark 1)"
echo "past: $(ip netns exec client timeout 1 socat -u TCP:198.51.100.9:80 - 2>&1 || true)"
# And once more.
systemctl start $unit
eventually listens 8080
echo "reply: $(ask_server 198.51.100.9:80)"
systemctl stop $unit
systemctl show -p Result $unit
"#),
    );
    assert_eq!(
        lines(&text, "reply: "),
        [
            "reply: [0000:0000:0000:0000:0000:ffff:c000:0207] [0000:0000:0000:0000:0000:ffff:c633:6409] 80",
            "reply: [2001:0db8:0001:0000:0000:0000:0000:0007] [2001:0db8:0002:0000:0000:0000:0000:0009] 25",
            "reply: [0000:0000:0000:0000:0000:ffff:c000:0207] [0000:0000:0000:0000:0000:ffff:c633:6409] 80",
        ],
        "{text}"
    );
    let closed = lines(&text, " closed: ");
    assert_eq!(field(closed[0], "server"), "198.51.100.9:80");
    assert_eq!(field(closed[1], "server"), "[2001:db8:2::9]:25");
    let opened = lines(&text, " opened: ");
    assert_eq!(opened.len(), 2, "{text}");
    for line in opened {
        let (uid, _) = field(line, "user").split_once(':').unwrap();
        assert_ne!(uid, "0", "{line}");
    }
    assert!(
        lines(&text, "direct: ")[0].contains("Connection refused"),
        "{text}"
    );
    let other = lines(&text, "other: ")[0];
    assert!(other.ends_with(" 8080"), "{text}");
    assert_eq!(lines(&text, "past: "), ["past: "], "{text}");
    assert_eq!(lines(&text, "rules: "), ["rules: "], "{text}");
    assert_eq!(lines(&text, "Result="), ["Result=success"], "{text}");
}
