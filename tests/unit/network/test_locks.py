"""The words of a lock, which must be CRIU's own to the letter for iptables to find the rule."""

from __future__ import annotations

from builders import listener, pair

from cria.network.connection_locks import iptables_rules
from cria.network.planner import plan
from cria.network.requests import PortRequests


def test_the_rules_are_those_that_criu_makes_for_the_old_ports() -> None:
    made = plan(pair("127.0.0.1:29550", "127.0.0.1:36342"), (), PortRequests.parse("offset:5"))
    words = [" ".join(rule).lower() for move in made for rule in iptables_rules(move)]
    # As CRIU 4.3 logs them.
    assert (
        "iptables -w -t filter -D OUTPUT --protocol tcp -m mark ! --mark 0xC114 --source 127.0.0.1"
        " --sport 29550 --destination 127.0.0.1 --dport 36342 -j DROP"
    ).lower() in words
    assert len(set(words)) == 4


def test_v6_goes_to_ip6tables_and_v4_mapped_to_iptables() -> None:
    six = plan(pair("[::1]:1024", "[::1]:1025"))
    mapped = plan(pair("[::ffff:127.0.0.1]:1024", "[::ffff:127.0.0.1]:1025"))
    assert {rule[0] for move in six for rule in iptables_rules(move)} == {"ip6tables"}
    found = [rule for move in mapped for rule in iptables_rules(move)]
    assert {rule[0] for rule in found} == {"iptables"}
    assert {rule[rule.index("--source") + 1] for rule in found} == {"127.0.0.1"}


def test_a_listener_has_no_rule() -> None:
    assert [iptables_rules(move) for move in plan([listener("127.0.0.1:1024")])] == [[]]
