"""The fan-out of the live feed."""

from uuid import UUID, uuid4

import pytest

from services.api import feed
from services.api.feed import CLIENTS, WAITING, Feed, Happened
from services.api.problems import ProblemError

RUN = uuid4()


def _event(number: int, site: str = "home", run_id: UUID = RUN) -> Happened:
    return Happened("progress", site, run_id, str(number).encode())


async def test_a_full_listener_loses_the_oldest() -> None:
    """The newest events are kept, in order, and the number of the others is told once."""
    fed = Feed()
    with fed.listening() as listener:
        for number in range(WAITING + 10):
            fed.publish(_event(number))
        taken = await listener.take(1)
        assert taken
        dropped, events = taken
        assert dropped == 10
        assert [int(event.data) for event in events] == list(range(10, WAITING + 10))
        fed.publish(_event(0))
        assert await listener.take(1) == (0, [_event(0)])


async def test_a_listener_hears_what_it_asked_for() -> None:
    """A site or a run selects; nothing within the time is nothing, not an error."""
    fed = Feed()
    with fed.listening(site="office") as of_site, fed.listening(run_id=RUN) as of_run:
        elsewhere = _event(1, "office", uuid4())
        fed.publish(elsewhere)
        fed.publish(_event(2))
        assert await of_site.take(1) == (0, [elsewhere])
        assert await of_run.take(1) == (0, [_event(2)])
        assert await of_run.take(0.01) == (0, [])


async def test_a_tick_of_several_schedulers_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever came between, for as many ticks as there is room for; progress and results of the run are told all the same."""
    monkeypatch.setattr(feed, "TICKS", 2)
    one, two, three = (Happened("tick", "home", uuid4(), b"") for _ in range(3))
    fed = Feed()
    with fed.listening() as listener:
        for event in (one, two, one, _event(1, run_id=one.run_id), two, _event(1, run_id=one.run_id), three, two, one):
            fed.publish(event)
        taken = await listener.take(1)
        assert taken
        assert [event for event in taken[1] if event.kind == "tick"] == [one, two, three, one]
        assert len(taken[1]) == 6


async def test_places_are_bounded_and_given_back() -> None:
    """One more client than there are places is refused with a 503; leaving makes a place free."""
    fed = Feed()
    places = [fed.listening() for _ in range(CLIENTS)]
    for place in places:
        place.__enter__()
    with pytest.raises(ProblemError) as refused, fed.listening():
        pass
    assert refused.value.status == 503
    assert len(fed) == CLIENTS
    places[0].__exit__(None, None, None)
    with fed.listening():
        pass
