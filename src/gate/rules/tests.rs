//! Verdicts: by one list, by several, and the search against the walk.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;

fn client(address: &str) -> Endpoint {
    let address: IpAddr = address.parse().unwrap();
    Endpoint::Inet((address.to_canonical(), 50_000).into())
}

fn rules(texts: &[&str]) -> Rules {
    let parse = |text: &&str| match text.split_once(' ') {
        Some(("allow", pattern)) => Rule::allow(pattern, Place::CommandLine),
        Some(("deny", pattern)) => Rule::deny(pattern, Place::CommandLine),
        _ => panic!("{text}"),
    };
    let mut rules = Rules::default();
    texts
        .iter()
        .for_each(|text| rules.push(parse(text).unwrap()));
    rules
}

#[test]
fn a_deny_refuses_and_where_there_are_allows_one_must_match() {
    let both = rules(&["allow 192.0.2.0/24", "deny 192.0.2.66"]);
    let [allow, deny] = &both.own[0].rules[..] else {
        panic!()
    };
    assert_eq!(
        judged(&both, "192.0.2.1"),
        Verdict::Pass([Some(allow), None])
    );
    assert_eq!(
        judged(&both, "192.0.2.66"),
        Verdict::Refuse(Denial::By(deny))
    );
    assert_eq!(
        judged(&both, "192.0.3.1"),
        Verdict::Refuse(Denial::NotAllowed)
    );
    assert_eq!(
        judged(&rules(&[]), "192.0.3.1"),
        Verdict::Pass([None, None])
    );
    let denies = rules(&["deny 192.0.2.66"]);
    assert_eq!(judged(&denies, "192.0.3.1"), Verdict::Pass([None, None]));
}

#[test]
fn of_address_rules_only_any_matches_a_unix_client() {
    for (rule, passes) in [
        ("allow ANY", true),
        ("allow *", false),
        ("allow 0.0.0.0/0", false),
    ] {
        let rules = rules(&[rule]);
        let verdict = rules.judge(&Endpoint::Unix, AllowLevels::Any);
        assert_eq!(matches!(verdict, Verdict::Pass(_)), passes, "{rule}");
    }
}

fn judged<'a>(rules: &'a Rules, address: &str) -> Verdict<'a> {
    rules.judge(&client(address), AllowLevels::Any)
}

#[test]
fn with_each_level_one_of_the_defaults_and_one_of_the_service_must_allow() {
    let defaults = rules(&["allow 10.0.0.0/8", "deny 10.6.6.6"]);
    let port = rules(&["allow 10.1.0.0/16"]);
    let interface = rules(&["allow 10.2.0.0/16"]).within(&port);
    let service = interface.of_service(&defaults);
    let [default, _] = &defaults.own[0].rules[..] else {
        panic!()
    };
    let (of_port, of_interface) = (&service.own[0].rules[0], &service.own[1].rules[0]);
    for (address, any, each) in [
        (
            "10.1.0.1",
            Verdict::Pass([Some(default), None]),
            Verdict::Pass([Some(default), Some(of_port)]),
        ),
        (
            "10.2.0.1",
            Verdict::Pass([Some(default), None]),
            Verdict::Pass([Some(default), Some(of_interface)]),
        ),
        (
            "10.3.0.1",
            Verdict::Pass([Some(default), None]),
            Verdict::Refuse(Denial::NotAllowedByService),
        ),
        (
            "192.0.2.1",
            Verdict::Refuse(Denial::NotAllowed),
            Verdict::Refuse(Denial::NotAllowedByDefaults),
        ),
    ] {
        assert_eq!(judged(&service, address), any, "{address}");
        let verdict = service.judge(&client(address), AllowLevels::Each);
        assert_eq!(verdict, each, "{address}");
    }
    // A level without any has nothing to say; a deny of either refuses.
    let alone = rules(&[]).of_service(&defaults);
    for levels in [AllowLevels::Any, AllowLevels::Each] {
        let verdict = alone.judge(&client("10.1.0.1"), levels);
        assert_eq!(verdict, Verdict::Pass([Some(default), None]));
        let verdict = service.judge(&client("10.6.6.6"), levels);
        assert!(matches!(verdict, Verdict::Refuse(Denial::By(_))));
    }
    let alone = rules(&["allow 10.1.0.0/16"]).of_service(&Rules::default());
    let verdict = alone.judge(&client("10.3.0.1"), AllowLevels::Each);
    assert_eq!(verdict, Verdict::Refuse(Denial::NotAllowedByService));
}

#[test]
fn level_by_level_a_missing_allow_is_told_before_a_deny() {
    let defaults = rules(&["deny 10.6.6.6", "allow 10.0.0.0/8", "deny 192.0.2.1"]);
    let own = rules(&["deny 10.1.0.1", "allow 10.2.0.0/16", "deny 10.2.0.1"]);
    let service = own.of_service(&defaults);
    for (address, words) in [
        ("192.0.2.1", "no allow rule of the defaults matches"),
        ("10.6.6.6", "deny 10.6.6.6 (the command line)"),
        ("10.1.0.1", "no allow rule of the service matches"),
        ("10.2.0.1", "deny 10.2.0.1 (the command line)"),
    ] {
        match service.judge(&client(address), AllowLevels::Each) {
            Verdict::Refuse(denial) => assert_eq!(denial.to_string(), words, "{address}"),
            Verdict::Pass(allows) => panic!("{address}: {allows:?}"),
        }
    }
}

#[test]
fn rules_are_shared_and_not_copied() {
    let defaults = rules(&["deny 10.0.0.1"; 100]);
    let services: Vec<Rules> = (0..10)
        .map(|_| rules(&["deny 10.0.0.2"]).of_service(&defaults))
        .collect();
    assert_eq!(Rc::strong_count(&defaults.own[0]), 11);
    // What is added to one is not added to others.
    let mut more = services[0].clone();
    more.push(Rule::deny("10.0.0.3", Place::CommandLine).unwrap());
    assert_eq!((more.own().count(), services[0].own().count()), (2, 1));
}

/// A generator of numbers that looks random and is the same every time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of few addresses, so that rules meet.
    fn address(&mut self) -> IpAddr {
        match self.below(3) {
            0 => Ipv6Addr::from_bits(
                u128::from(0x2001_0db8_0000_0000 | self.below(4) << 16) << 64
                    | u128::from(self.below(6)),
            )
            .into(),
            1 => Ipv4Addr::from_bits(self.next() as u32).into(),
            _ => Ipv4Addr::from_bits(0x0a00_0000 | (self.below(4) << 8 | self.below(6)) as u32)
                .into(),
        }
    }

    fn rule(&mut self) -> String {
        let effect = ["allow", "deny"][self.below(2) as usize];
        let address = self.address();
        let width = if address.is_ipv4() { 32 } else { 128 };
        match self.below(40) {
            0 => format!("{effect} ANY"),
            1 => format!("{effect} 10.0.{}.*", self.below(4)),
            2 => format!("{effect} *::{}", self.below(6)),
            3 => format!(
                "{effect} ::ffff:{}/{}",
                Ipv4Addr::from_bits(self.next() as u32),
                90 + self.below(39)
            ),
            4..15 => format!("{effect} {address}"),
            _ => {
                // Mostly long prefixes, and now and then the shortest.
                let prefix = width - self.below(width + 1).min(self.below(width + 1));
                format!("{effect} {address}/{prefix}")
            }
        }
    }
}

#[test]
fn the_search_finds_the_rule_that_the_walk_finds() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut found = 0;
    for round in 0..400 {
        let list = |numbers: &mut Numbers, most| {
            let count = numbers.below(most);
            let texts: Vec<String> = (0..count).map(|_| numbers.rule()).collect();
            rules(&texts.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let most = [4, 40, 300][round % 3];
        let (defaults, own) = (list(&mut numbers, most), list(&mut numbers, most));
        let all = own.of_service(&defaults);
        for list in all.defaults.iter().chain(&all.own) {
            let search = Search::of(&list.rules);
            for _ in 0..60 {
                let client = match numbers.below(20) {
                    0 => Endpoint::Unix,
                    _ => Endpoint::Inet((numbers.address().to_canonical(), 1).into()),
                };
                let asked = Asked::about(&client);
                for effect in [Effect::Allow, Effect::Deny] {
                    let walked = list.walk(effect, &asked);
                    let searched = search.first(&list.rules, effect, &asked);
                    let searched = searched.map(|index| &list.rules[index]);
                    // The same one, not one that is equal.
                    let place = |rule: Option<&Rule>| rule.map(std::ptr::from_ref);
                    assert_eq!(place(searched), place(walked), "{client} {:?}", list.rules);
                    found += usize::from(walked.is_some());
                }
            }
        }
        // And so the verdicts, which the search is made for.
        for _ in 0..20 {
            let client = Endpoint::Inet((numbers.address().to_canonical(), 1).into());
            let walked = format!("{:?}", all.judge(&client, AllowLevels::Each));
            let prepared = all.clone();
            prepared.prepare();
            let searched = format!("{:?}", prepared.judge(&client, AllowLevels::Each));
            assert_eq!(searched, walked);
        }
    }
    assert!(found > 1_000, "{found}");
}

#[test]
fn ten_thousand_networks_cost_a_search_and_no_walk() {
    let texts: Vec<String> = (0..10_000_u32)
        .map(|number| {
            format!(
                "deny {}/{}",
                Ipv4Addr::from_bits(0x0b00_0000 + number * 256),
                24 + number % 9
            )
        })
        .collect();
    let rules = rules(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    rules.prepare();
    let clients = ["10.0.0.1", "11.0.1.0", "2001:db8::1"].map(client);
    let fastest = (0..20).map(|_| {
        let started = std::time::Instant::now();
        for _ in 0..100 {
            for client in &clients {
                assert!(!matches!(
                    rules.judge(client, AllowLevels::Any),
                    Verdict::Pass([Some(_), _])
                ));
            }
        }
        started.elapsed() / 300
    });
    // 20 µs each, in a build that is not optimised; a walk takes ten times as long. The fastest of
    // many: nobody else had the processor then.
    let each = fastest.min().unwrap();
    assert!(each < std::time::Duration::from_micros(20), "{each:?}");
}

#[test]
fn a_rule_is_shown_as_it_was_written() {
    for written in [
        "ANY",
        "192.0.2.1",
        "192.0.2.1/32",
        "192.0.2.99/24",
        "192.0.2.0/255.255.255.0",
        "::ffff:192.0.2.1",
        "::ffff:192.0.2.0/120",
        "2001:DB8:0::/32",
        "2001:db8::/32",
        "2001:DB8:*",
        "192.0.2.?",
    ] {
        let rule = Rule::deny(written, Place::CommandLine).unwrap();
        assert_eq!(rule.pattern(), written);
        assert_eq!(rule.to_string(), format!("deny {written}"));
    }
}

#[test]
fn a_rule_is_small() {
    assert!(size_of::<Rule>() <= 48, "{}", size_of::<Rule>());
}
