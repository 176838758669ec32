"""The port plan, case by case: what moves together, what is refused, and what the reader is told."""

from __future__ import annotations

import json

import pytest
from builders import connection, end, listener, pair, stranger

from cria.errors import PortPlanRefused, PortTaken, PortUnknown, UsageError
from cria.model.socket import PortSocket
from cria.network.plan import PortPlan
from cria.network.planner import plan, plan_clones
from cria.network.requests import PortRequests

HTTP = listener("0.0.0.0:8000", role="HTTP API", owner="PID 10 (vllm)")
GLOO = listener("127.0.0.1:30000", 4, role="Gloo")


def ends(made: PortPlan, number: int) -> tuple[str, str]:
    (move,) = (move for move in made if move.id == number)
    return str(move.new), str(move.new_peer)


def test_a_listener_moves_with_what_it_accepted_and_with_their_peers() -> None:
    sockets = (listener("127.0.0.1:30000"), *pair("127.0.0.1:30000", "127.0.0.1:40000"))
    made = plan(sockets, (), PortRequests.parse({30000: 31000}))
    assert ends(made, 1) == ("127.0.0.1:31000", "None")
    assert ends(made, 2) == ("127.0.0.1:31000", "127.0.0.1:40000")
    assert ends(made, 3) == ("127.0.0.1:40000", "127.0.0.1:31000")
    assert made.moved_ports == {30000: 31000}


def test_the_dialling_end_of_a_pair_moves_when_the_original_is_alive() -> None:
    sockets = (GLOO, *pair("127.0.0.1:30000", "127.0.0.1:40000"))
    alive = [
        stranger(str(s.local), peer=s.peer, state=s.state, owner="the original") for s in sockets
    ]
    made = plan(sockets, alive)
    assert ends(made, 2) == ("127.0.0.1:30001", "127.0.0.1:40001")
    assert ends(made, 3) == ("127.0.0.1:40001", "127.0.0.1:30001")


def test_a_v4_mapped_end_finds_its_v4_peer_and_keeps_its_form() -> None:
    sockets = (
        listener("[::]:9000", dual_stack=True),
        connection("[::ffff:127.0.0.1]:9000", "[::ffff:127.0.0.1]:9100", 2),
        connection("127.0.0.1:9100", "127.0.0.1:9000", 3),
    )
    made = plan(sockets, (), PortRequests.parse("offset:5"))
    assert ends(made, 2) == ("[::ffff:127.0.0.1]:9005", "[::ffff:127.0.0.1]:9105")
    assert ends(made, 3) == ("127.0.0.1:9105", "127.0.0.1:9005")


def test_a_group_on_one_port_moves_as_one() -> None:
    sockets = [listener("0.0.0.0:8000", number, reuse_port=True) for number in range(1, 5)]
    made = plan(sockets, (), PortRequests.parse("8000=8001"))
    assert {str(move.new) for move in made} == {"0.0.0.0:8001"}


def test_the_same_port_in_two_namespaces_is_two_ports() -> None:
    sockets = (
        listener("127.0.0.1:30000", 1, role="Gloo"),
        listener("127.0.0.1:30000", 2, ns_id=2, role="Gloo"),
    )
    made = plan(sockets, [stranger("127.0.0.1:30000", ns_id=2)])
    assert [str(move.new) for move in made] == ["127.0.0.1:30000", "127.0.0.1:30001"]


def test_udp_and_tcp_do_not_meet_and_a_udp_peer_follows() -> None:
    dns = listener("127.0.0.1:5300", 1, protocol="udp", state="CLOSE", role="ZMQ")
    client = connection("127.0.0.1:5301", "127.0.0.1:5300", 2, protocol="udp")
    kept = plan([dns, client], [stranger("127.0.0.1:5300")])
    assert not kept.changes
    made = plan([dns, client], [stranger("127.0.0.1:5300", protocol="udp", state="CLOSE")])
    assert ends(made, 2) == ("127.0.0.1:5301", "127.0.0.1:5302")


def test_an_address_moves_on_both_ends() -> None:
    sockets = (listener("10.0.0.5:9000"), *pair("10.0.0.5:9000", "10.0.0.5:9100"))
    made = plan(sockets, (), PortRequests.parse(addresses=["10.0.0.5=127.0.0.1"]))
    assert ends(made, 2) == ("127.0.0.1:9000", "127.0.0.1:9100")
    assert ends(made, 3) == ("127.0.0.1:9100", "127.0.0.1:9000")


def test_a_v4_mapped_address_moves_in_its_own_form() -> None:
    sockets = (
        listener("[::]:9000", dual_stack=True),
        connection("[::ffff:10.0.0.5]:9000", "[::ffff:10.0.0.5]:9100", 2),
        connection("10.0.0.5:9100", "10.0.0.5:9000", 3),
    )
    made = plan(sockets, (), PortRequests.parse(addresses=["10.0.0.5=127.0.0.1"]))
    assert ends(made, 2) == ("[::ffff:127.0.0.1]:9000", "[::ffff:127.0.0.1]:9100")
    assert ends(made, 3) == ("127.0.0.1:9100", "127.0.0.1:9000")


def test_two_listeners_that_meet_on_a_moved_address_are_refused() -> None:
    sockets = (listener("10.0.0.5:9000", 1), listener("127.0.0.1:9000", 2))
    with pytest.raises(PortPlanRefused, match=r"10\.0\.0\.5:9000 cannot become"):
        plan(sockets, (), PortRequests.parse(addresses=["10.0.0.5=127.0.0.1"]))


# What is refused --------------------------------------------------------------------------------


def test_a_published_port_that_is_taken_is_not_moved_silently() -> None:
    with pytest.raises(PortTaken, match="port 8000 is taken") as caught:
        plan([HTTP], [stranger("127.0.0.1:8000")])
    assert "PID 7 (other)" in str(caught.value.details)


def test_auto_moves_a_published_port_too() -> None:
    assert (
        plan([HTTP], [stranger("127.0.0.1:8000")], PortRequests.parse("auto")).new_port(8000)
        == 8001
    )


def test_a_wish_for_a_taken_port_names_the_occupant_even_with_so_reuseport() -> None:
    group = [stranger("0.0.0.0:8001", owner=f"PID {pid} (server)") for pid in (5, 6)]
    with pytest.raises(PortTaken, match=r"port 8001 \(for 8000\)") as caught:
        plan([HTTP], group, PortRequests.parse("8000=8001"))
    assert "PID 5" in str(caught.value.details)


def test_a_wish_for_a_port_of_the_same_checkpoint_is_refused_under_keep() -> None:
    with pytest.raises(PortPlanRefused, match="8000 and 30000 cannot both become 30000"):
        plan([HTTP, GLOO], (), PortRequests.parse(["8000=30000", "keep"]))


def test_a_wish_for_a_port_of_the_same_checkpoint_moves_the_inner_one_away() -> None:
    made = plan([HTTP, GLOO], (), PortRequests.parse("8000=30000"))
    assert made.moved_ports == {8000: 30000, 30000: 30001}


def test_two_ports_may_change_places() -> None:
    made = plan([HTTP, GLOO], (), PortRequests.parse({8000: 30000, 30000: 8000}))
    assert made.moved_ports == {8000: 30000, 30000: 8000}


def test_two_sources_for_one_target_are_refused() -> None:
    with pytest.raises(PortPlanRefused, match="cannot both become 9000"):
        plan([HTTP, GLOO], (), PortRequests.parse({8000: 9000, 30000: 9000}))


def test_a_port_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(PortUnknown, match="port 8080 is not in the checkpoint") as caught:
        plan([HTTP, GLOO], (), PortRequests.parse({8080: 9000}))
    assert "8000 (tcp, HTTP API)" in str(caught.value.details)


def test_a_checkpoint_without_sockets_says_so() -> None:
    assert len(plan([])) == 0
    with pytest.raises(PortUnknown) as caught:
        plan([], (), PortRequests.parse("8000=8001"))
    assert caught.value.details == "it has no port at all"


def test_nccl_listeners_stay_and_say_why() -> None:
    nccl = listener("127.0.0.1:5000", role="NCCL", pinned="NCCL dials again")
    assert "NCCL dials again" in next(iter(plan([nccl], (), PortRequests.parse("fresh")))).why
    with pytest.raises(PortPlanRefused, match="port 5000 cannot move"):
        plan([nccl], (), PortRequests.parse("5000=5001"))
    with pytest.raises(PortTaken) as caught:
        plan([nccl], [stranger("127.0.0.1:5000")], PortRequests.parse("auto"))
    assert "it cannot move" in str(caught.value.details)


def test_no_free_port_is_an_error_and_not_a_loop() -> None:
    full = [stranger(f"0.0.0.0:{port}") for port in range(1024, 65536)]
    with pytest.raises(PortTaken, match="no tcp port is free"):
        plan([GLOO], full)


# Connections with one end outside ----------------------------------------------------------------

CLIENT = connection("10.0.0.5:8000", "10.0.0.9:50000", 2, role="HTTP API")
HUB = connection("10.0.0.5:45000", "192.0.2.1:443", 3, owner="PID 10 (vllm)")


def test_http_clients_are_closed_in_a_copy_and_kept_where_asked() -> None:
    (_, closed) = plan([HTTP, CLIENT], (), PortRequests.parse("8000=8001"))
    assert (closed.kind, closed.closes, closed.new.port) == ("client", True, 0)
    (_, kept) = plan([HTTP, CLIENT], clients="keep")
    assert not kept.changes


def test_other_connections_are_refused_with_both_ends_and_the_owner() -> None:
    with pytest.raises(PortPlanRefused, match="1 connection") as caught:
        plan([HTTP, HUB])
    assert "10.0.0.5:45000 to 192.0.2.1:443" in str(caught.value.details)
    assert "PID 10 (vllm)" in str(caught.value.details)
    (_, closed) = plan([HTTP, HUB], outside="close")
    assert closed.closes


def test_a_connection_that_the_other_end_has_ended_is_closed_without_asking() -> None:
    dead = connection("10.0.0.5:45000", "192.0.2.1:443", 3, state="CLOSE_WAIT")
    (move,) = plan([dead])
    assert move.closes


def test_a_kept_connection_that_is_alive_elsewhere_is_refused() -> None:
    there = stranger("10.0.0.5:45000", peer=end("192.0.2.1:443"), state="ESTABLISHED")
    with pytest.raises(PortPlanRefused, match="exists already"):
        plan([HUB], [there], outside="keep")


def test_no_port_moves_onto_that_of_a_kept_connection() -> None:
    with pytest.raises(PortPlanRefused, match="cannot become"):
        plan([HTTP, HUB], (), PortRequests.parse("8000=45000"), outside="keep")


def test_a_living_connection_on_the_port_of_a_dialling_end_is_in_the_way() -> None:
    sockets = (GLOO, *pair("127.0.0.1:30000", "127.0.0.1:40000"))
    there = stranger("127.0.0.1:40000", peer=end("127.0.0.1:5432"), state="ESTABLISHED")
    with pytest.raises(PortTaken, match="port 40000 is taken"):
        plan(sockets, [there], PortRequests.parse("keep"))
    assert ends(plan(sockets, [there]), 3)[0] == "127.0.0.1:40001"


def test_what_a_dead_server_had_accepted_is_left_to_the_kernel() -> None:
    left = stranger("127.0.0.1:8000", peer=end("127.0.0.1:50000"), state="FIN_WAIT2", owner="")
    assert not plan([HTTP], [left]).changes


# Clones -----------------------------------------------------------------------------------------


def test_clones_take_their_ports_from_the_range_and_never_meet() -> None:
    made = plan_clones([HTTP, GLOO], 3, (), PortRequests.parse("8000=8001..8003"))
    assert [each.new_port(8000) for each in made] == [8001, 8002, 8003]
    assert [each.new_port(30000) for each in made] == [30000, 30001, 30002]


def test_a_range_that_is_too_short_is_refused() -> None:
    with pytest.raises(PortPlanRefused, match="too few for 3 clones") as caught:
        plan_clones([HTTP], 3, (), PortRequests.parse("8000=8001..8002"))
    assert caught.value.remedy == "give a range: -p 8000=8001..8003"


# What the reader sees -----------------------------------------------------------------------------


def test_the_table_and_the_json_say_the_same() -> None:
    made = plan([HTTP, GLOO, CLIENT], (), PortRequests.parse({8000: 8001, 30000: 30005}))
    text, data = str(made), made.to_json()
    assert json.loads(json.dumps(data))["ports"] == {"8000": 8001, "30000": 30005}
    for socket in data["sockets"]:
        assert f"{socket['old']['address']}:{socket['old']['port']}" in text
        assert socket["why"] in text
    assert "PID 10 (vllm)" in text
    assert "closed" in text
    assert "HTTP API: the log and the engine's own messages name port 8000" in text
    assert "TORCH_GLOO_LAZY_INIT" in text


def test_what_stays_is_shown_as_staying() -> None:
    made = plan([HTTP])
    assert str(made).splitlines()[1].split()[-3:] == ["=", "stays:", "free"]


# What is to be reserved ---------------------------------------------------------------------------


def targets(*sockets: PortSocket) -> list[str]:
    return [str(target) for target in plan(sockets, outside="keep").targets]


def test_a_wildcard_covers_what_was_accepted_on_it() -> None:
    sockets = (HTTP, *pair("127.0.0.1:8000", "127.0.0.1:40000"))
    assert targets(*sockets) == ["tcp 0.0.0.0:8000", "tcp 127.0.0.1:40000"]


def test_a_dual_stack_listener_covers_v4_and_a_v6_only_one_does_not() -> None:
    mapped = connection("[::ffff:127.0.0.1]:8000", "[::ffff:127.0.0.1]:9", 2)
    partner = connection("127.0.0.1:9", "127.0.0.1:8000", 3)
    both = listener("[::]:8000", dual_stack=True)
    assert targets(both, mapped, partner) == ["tcp 127.0.0.1:9", "tcp [::]:8000"]
    v4, v6 = listener("0.0.0.0:8000", 1), listener("[::]:8000", 2)
    assert targets(v4, v6) == ["tcp 0.0.0.0:8000", "tcp [::]:8000"]


def test_connections_to_outside_are_not_reserved() -> None:
    assert targets(HUB) == []


# Wishes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "ports", "mode"),
    [
        ({8000: 8001}, {8000: (8001,)}, "as-needed"),
        ({8000: range(8001, 8004)}, {8000: (8001, 8002, 8003)}, "as-needed"),
        ("8000=8001", {8000: (8001,)}, "as-needed"),
        ("8000=8001..8003", {8000: (8001, 8002, 8003)}, "as-needed"),
        (["8000=8001", "9000=9001", "keep"], {8000: (8001,), 9000: (9001,)}, "keep"),
        ("auto", {}, "auto"),
        ("offset:-100", {}, "offset"),
        ((), {}, "as-needed"),
    ],
)
def test_wishes_are_read(asked: object, ports: object, mode: str) -> None:
    wishes = PortRequests.parse(asked)  # type: ignore[arg-type]
    assert (wishes.ports, wishes.mode) == (ports, mode)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("8000=", "not a port move"),
        ("eight", "no way to choose ports"),
        ("offset:x", "no way to choose ports"),
        ("8000=8005..8001", "runs backwards"),
        (["8000=1", "8000=2"], "privileged"),
        (["8000=8001", "8000=8002"], "two places"),
        (["keep", "auto"], "exclude each other"),
        ("8000=70000", "cannot become 70000"),
        ("8000=0", "cannot become 0"),
        ("8000=80", "privileged"),
        ({8000: [8001, 8005]}, "not a run"),
    ],
)
def test_words_that_do_not_fit_are_refused(asked: object, message: str) -> None:
    with pytest.raises((UsageError, PortPlanRefused), match=message):
        PortRequests.parse(asked)  # type: ignore[arg-type]


def test_an_offset_out_of_range_is_refused() -> None:
    with pytest.raises(PortPlanRefused, match="cannot become 65536"):
        plan([GLOO], (), PortRequests.parse("offset:35536"))


@pytest.mark.parametrize("word", ["10.0.0.5", "10.0.0.5=::1", "a=b"])
def test_addresses_that_do_not_fit_are_refused(word: str) -> None:
    with pytest.raises((UsageError, PortPlanRefused)):
        PortRequests.parse(addresses=[word])


def test_an_address_that_is_not_there_is_refused() -> None:
    with pytest.raises(PortPlanRefused, match=r"10\.9\.9\.9 is not in the checkpoint") as caught:
        plan([HTTP], (), PortRequests.parse(addresses=["10.9.9.9=127.0.0.1"]))
    assert "0.0.0.0" in str(caught.value.details)
