"""What the engine `http` tells its child to do."""

from services.runner.probes.http import PUBLIC_LIST, HttpOptions, order


def test_without_a_server_the_public_ones_are_asked() -> None:
    """Who names nothing measures against the nearest public server; who names one, or a list, or Cloudflare, gets that."""
    assert order(HttpOptions())["server_list"] == PUBLIC_LIST
    assert order(HttpOptions(server="http://192.0.2.1"))["server_list"] is None
    assert order(HttpOptions(server_list="http://192.0.2.1/list"))["server_list"] == "http://192.0.2.1/list"
    assert order(HttpOptions(backend="cloudflare"))["server_list"] is None
