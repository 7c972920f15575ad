//! The machine by tables: what it asks, sets, puts back and tells.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that meets what it did not expect is to fail")]

use proptest::prelude::*;

use super::*;

/// A peer as a test sees it, by a card that is right or not.
#[derive(Debug, Clone, Copy)]
struct Path {
    /// Its kernel answers what it gets whole.
    answers: bool,
    /// What is left to the card arrives whole.
    card: bool,
    /// The same of marked packets.
    card_marked: bool,
    /// Whether it helps to have the device compute.
    helps: bool,
    /// Marked packets arrive at all.
    marked: bool,
}

const WELL: Path = Path { answers: true, card: true, card_marked: true, helps: true, marked: true };

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

fn there(by: By, peers: usize) -> There {
    let target = |n: usize| Target { node: name(&format!("b{n}")), addr: IpAddr::from([10, 244, n as u8, 0]) };
    There { number: 7, underlay: "eth0".parse().ok(), by, targets: (1..=peers).map(target).collect() }
}

/// Does what the test says until it waits or rests: who computes on the device in the end, how often that was set, how many
/// datagrams were sent.
fn drive(test: &mut Test, paths: &[Path], by: &mut By, now: u64) -> (usize, usize) {
    let (mut sets, mut sent) = (0, 0);
    for _ in 0..500 {
        match test.next(now) {
            Step::Probe(probe) => {
                let IpAddr::V4(addr) = probe.addr else { panic!("{probe:?}") };
                let path = paths[usize::from(addr.octets()[2]) - 1];
                let is_marked = probe.mark != 0;
                let by_card = if is_marked { path.card_marked } else { path.card };
                let is_whole = match (probe.by, *by) {
                    (By::Host, _) => true,
                    (By::Card, By::Card) => by_card,
                    (By::Card, By::Host) => path.helps,
                };
                sent += 1;
                test.answered(path.answers && is_whole && (path.marked || !is_marked), now);
            }
            Step::Set(to) => {
                (*by, sets) = (to, sets + 1);
                test.was_set(Ok(()), now);
            }
            Step::Wait(until) => {
                assert!(until > now);
                return (sets, sent);
            }
            Step::Rest => return (sets, sent),
        }
    }
    panic!("it comes to no end: {test:?}");
}

#[test]
fn what_each_world_comes_to() {
    let card = |n: &str| Verdict::Card { peer: name(n) };
    let host = |n: &str, is_marked| Verdict::Host { peer: name(n), is_marked };
    let undecided = |n: &str| Verdict::Undecided { peer: name(n) };
    let deaf = Path { answers: false, ..WELL };
    let broken = Path { card: false, card_marked: false, ..WELL };
    let table: &[(&str, &[Path], Verdict, usize, usize)] = &[
        ("a card that is right: one datagram of each sort, and nothing is set", &[WELL], card("b1"), 0, 2),
        ("one that is wrong", &[broken], host("b1", false), 1, 7),
        ("wrong for marked packets alone", &[Path { card_marked: false, ..WELL }], host("b1", true), 1, 8),
        ("nobody answers: nothing is set", &[deaf, deaf], undecided("b2"), 0, 8),
        ("the first does not answer, the second does", &[deaf, WELL], card("b2"), 0, 6),
        ("the first does not answer, and the card is wrong", &[deaf, broken], host("b2", false), 1, 11),
        ("it is not the device: put back", &[Path { helps: false, ..broken }], undecided("b1"), 2, 9),
        (
            "marked packets do not get through at all: that says nothing",
            &[Path { marked: false, ..WELL }],
            card("b1"),
            0,
            5,
        ),
        (
            "with marked packets it is not the device",
            &[Path { card_marked: false, helps: false, ..WELL }],
            card("b1"),
            2,
            10,
        ),
        ("no peer", &[], Verdict::Untried, 0, 0),
    ];
    for (what, paths, verdict, sets, sent) in table {
        let mut by = By::Card;
        let mut test = Test::new(there(By::Card, paths.len()));
        assert_eq!(drive(&mut test, paths, &mut by, 0), (*sets, *sent), "{what}");
        assert_eq!(test.verdict(), verdict, "{what}");
        assert_eq!(verdict.by(), Some(by), "{what}: what is said is what is set");
        assert_eq!(verdict.problem("flannel.1".parse().expect("a name")).is_some(), by == By::Host, "{what}");
    }
}

#[test]
fn a_lost_datagram_is_no_fault_of_the_card() {
    let mut test = Test::new(there(By::Card, 1));
    for answers in [[false, true], [false, true], [false, false]] {
        for answer in answers {
            assert!(matches!(test.next(0), Step::Probe(_)));
            test.answered(answer, 0);
        }
    }
    assert_eq!(drive(&mut test, &[WELL], &mut By::Card, 0), (0, 2));
    assert_eq!(test.verdict(), &Verdict::Card { peer: name("b1") });
}

#[test]
fn the_two_of_a_pair_differ_in_who_computes_and_nothing_else() {
    let mut test = Test::new(there(By::Card, 1));
    let mut ports = std::collections::BTreeSet::new();
    for _ in 0..PAIRS {
        let Step::Probe(left) = test.next(0) else { panic!("{test:?}") };
        test.answered(false, 0);
        let Step::Probe(computed) = test.next(0) else { panic!("{test:?}") };
        test.answered(true, 0);
        assert_eq!((left.by, computed.by), (By::Card, By::Host));
        assert_eq!(Probe { by: By::Card, ..computed }, left);
        ports.insert(left.port);
    }
    assert_eq!(ports.len(), PAIRS as usize, "a program that listens on one of them spoils one pair alone");
    assert_eq!(test.next(0), Step::Set(By::Host));
}

#[test]
fn who_does_not_answer_is_asked_again_later_and_later() {
    let deaf = Path { answers: false, ..WELL };
    let (mut test, mut by, mut now, mut pauses) = (Test::new(there(By::Card, 2)), By::Card, 0, Vec::new());
    for _ in 0..10 {
        drive(&mut test, &[deaf, deaf], &mut by, now);
        let Step::Wait(until) = test.next(now) else { panic!("{test:?}") };
        pauses.push(until - now);
        assert_eq!(test.next(until - 1), Step::Wait(until));
        now = until;
    }
    assert_eq!(pauses[..3], [PAUSE_FIRST, 2 * PAUSE_FIRST, 4 * PAUSE_FIRST]);
    assert_eq!(pauses.last(), Some(&PAUSE_MOST));
    drive(&mut test, &[WELL, WELL], &mut by, now);
    assert_eq!(test.verdict(), &Verdict::Card { peer: name("b1") });
}

#[test]
fn the_first_peer_is_asked_as_soon_as_there_is_one() {
    let mut test = Test::new(there(By::Card, 0));
    assert_eq!(test.next(5), Step::Rest);
    test.look(there(By::Card, 1));
    assert!(matches!(test.next(5), Step::Probe(_)));
}

#[test]
fn what_was_found_holds_for_the_device_and_its_way() {
    let broken = Path { card: false, card_marked: false, ..WELL };
    let (mut test, mut by) = (Test::new(there(By::Card, 1)), By::Card);
    drive(&mut test, &[broken], &mut by, 0);
    let remedied = test.clone();
    test.look(there(By::Host, 1));
    assert_eq!((test.next(0), &test), (Step::Rest, &remedied), "nothing new is nothing to do");

    // Another card: what this test had set is put back first.
    test.look(There { underlay: "eth1".parse().ok(), ..there(By::Host, 1) });
    assert_eq!(drive(&mut test, &[WELL], &mut by, 0), (1, 2));
    assert_eq!((test.verdict(), by), (&Verdict::Card { peer: name("b1") }, By::Card));

    // Made anew: it leaves checksums to the card again.
    let mut test = remedied.clone();
    test.look(There { number: 8, ..there(By::Card, 1) });
    by = By::Card;
    assert_eq!(drive(&mut test, &[broken], &mut by, 0), (1, 7));
    assert_eq!(by, By::Host);

    // Set by somebody else, as to have it tried again.
    let mut test = remedied;
    test.look(there(By::Card, 1));
    by = By::Card;
    assert_eq!(drive(&mut test, &[WELL], &mut by, 0), (0, 2));
    assert_eq!(by, By::Card);
}

#[test]
fn what_somebody_else_has_set_stays() {
    let mut test = Test::new(there(By::Host, 1));
    assert_eq!((test.next(0), test.verdict()), (Step::Rest, &Verdict::Found));
    // Another card is no reason either: it is not known why it is so.
    test.look(There { underlay: "eth1".parse().ok(), ..there(By::Host, 1) });
    assert_eq!((test.next(0), test.verdict()), (Step::Rest, &Verdict::Found));
    test.look(there(By::Card, 1));
    drive(&mut test, &[WELL], &mut By::Card, 0);
    assert_eq!(test.verdict(), &Verdict::Card { peer: name("b1") });
    test.look(there(By::Host, 1));
    assert_eq!((test.next(0), test.verdict()), (Step::Rest, &Verdict::Found));
}

#[test]
fn a_kernel_that_refuses_is_told_of() {
    let mut test = Test::new(there(By::Card, 1));
    for _ in 0..PAIRS {
        for answer in [false, true] {
            assert!(matches!(test.next(0), Step::Probe(_)));
            test.answered(answer, 0);
        }
    }
    assert_eq!(test.next(0), Step::Set(By::Host));
    test.was_set(Err("Operation not permitted".to_owned()), 0);
    let problem = test.verdict().problem("flannel.1".parse().expect("a name")).expect("a problem").to_string();
    assert!(problem.starts_with("link flannel.1: ") && problem.contains("Operation not permitted"), "{problem}");
    assert_eq!(test.next(0), Step::Wait(PAUSE_FIRST), "it is tried again");
}

proptest! {
    /// Whatever is answered and whatever happens to the device: it is set to compute only behind answers to the one kind and silence
    /// for the other, and what is said is what is set.
    #[test]
    fn nothing_is_set_without_cause(events in proptest::collection::vec((0_u8..12, any::<bool>()), 0..200)) {
        let (mut by, mut number, mut now) = (By::Card, 7, 0);
        let mut test = Test::new(there(by, 2));
        let (mut control, mut card) = (0, 0);
        for (event, answer) in events {
            match event {
                0 => {
                    (by, number) = (By::Card, number + 1);
                    test.look(There { number, ..there(by, 2) });
                    (control, card) = (0, 0);
                }
                1 => {
                    by = if answer { By::Card } else { By::Host };
                    test.look(There { number, ..there(by, 2) });
                }
                2 => test.look(There { number, ..there(by, usize::from(answer)) }),
                _ => match test.next(now) {
                    Step::Probe(probe) => {
                        match (probe.by, answer) {
                            (By::Host, true) => control += 1,
                            (By::Card, true) => (control, card) = (0, 0),
                            (By::Card, false) => card += 1,
                            (By::Host, false) => {}
                        }
                        test.answered(answer, now);
                    }
                    Step::Set(to) => {
                        if to == By::Host {
                            prop_assert!(control >= PAIRS && card >= PAIRS);
                        }
                        (control, card) = (0, 0);
                        by = to;
                        test.was_set(Ok(()), now);
                    }
                    Step::Wait(until) => now = until,
                    Step::Rest => prop_assert!(test.verdict().by() == Some(by), "{test:?}"),
                },
            }
        }
    }
}
