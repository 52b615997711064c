"""What the command line makes of the API's answers."""

from services.cli.api import Event, parse, path


def test_events_are_read_as_they_are_written() -> None:
    """Several data lines are one value, comments are keep-alives, unknown fields and half an event at the end count for nothing."""
    lines = [
        *(": keep-alive", ""),
        *("event: progress", 'data: {"fraction":', "data:0.5}", "id: 7", ""),
        *('data: {"a": 1}', ""),
        *("event: empty", ""),
        *("event: result", 'data: {"cut": '),
    ]
    assert list(parse(lines)) == [Event(""), Event("progress", {"fraction": 0.5}), Event("message", {"a": 1})]


def test_a_name_cannot_leave_its_place_in_the_path() -> None:
    """Whatever a person types as a name is one segment."""
    assert path("schedules", "../runs?x=1#é") == "/schedules/..%2Fruns%3Fx%3D1%23%C3%A9"
