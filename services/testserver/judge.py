"""Whether a request gets what it asks for: the limits, in one place."""

from services.testserver.answers import Answer, refusal
from services.testserver.request import Asked
from services.testserver.site import Site
from services.testserver.transfers import Transfer


def judge(site: Site, asked: Asked, client: str) -> tuple[Answer, Transfer | None]:
    """Return the answer to a request, or why there is none; with it the transfer that begins, where one does."""
    answer = site.answers.to(asked, client)
    if refused := _too_long(site, asked) or (answer if answer.refused else _too_much(site, asked, answer)):
        return refused, None
    if answer.transfer is None or asked.method == "HEAD" or (answer.transfer == "upload" and asked.body == 0):
        return answer, None
    if transfer := site.transfers.begin(client, answer.transfer):
        return answer, transfer
    told = f"There may be {site.settings.testserver_transfers} transfers at once from one address."
    return refusal(429, "transfers", told, (*answer.headers, ("Retry-After", "1"))), None


def _too_long(site: Site, asked: Asked) -> Answer | None:
    most = site.settings.testserver_head_bytes
    return refusal(431, "malformed", f"The head of a request may have {most} bytes here.") if asked.head_bytes > most else None


def _too_much(site: Site, asked: Asked, answer: Answer) -> Answer | None:
    if asked.body != 0 and answer.transfer != "upload":
        return refusal(413, "body", "Nothing can be sent to this path.", answer.headers)
    most = site.settings.testserver_bytes
    return refusal(413, "bytes", f"An upload may have {most} bytes here.", answer.headers) if (asked.body or 0) > most else None
