"""A checked folder becomes one commit of a Hub repository, or a pull request.

One commit, so that nobody ever downloads half a model: large files are sent first, and become visible with the commit.
If it breaks off, what was sent is kept by the Hub, and the same command goes on from there. After the commit the
repository is compared with the folder, file by file: a server may have dropped or ignored some of them.

No message repeats what the server says: it may echo the token.
"""

import fnmatch
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, set_client_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, validate_repo_id

from .secret_scan import refuse_secrets

logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds, doubled at every attempt
LONGEST_WAIT = 60.0
TEMPORARY = (429, 500, 502, 503, 504)
SILENCE = 120.0  # seconds without a byte after which a request has failed; a commit of many files takes a while
NOT_THE_PROTOCOL = (KeyError, TypeError, AttributeError, IndexError, ValueError)  # what huggingface_hub runs into then
MANY = 5  # files that a message names
# What an earlier version of the same repository may hold and this one does not: shards, plots, another kind of weights.
REPLACED = (
    "*.safetensors", "*.safetensors.index.json", "plots/*", ".eval_results/*", "adapter_config.json", "*.py",
    "data/*.parquet", "degraded/*.parquet",
)  # fmt: skip

Result = TypeVar("Result")


@dataclass(frozen=True)
class Published:
    """What came of it: `url` of the commit or the pull request, and whether anything `changed`."""

    url: str
    changed: bool


def check_repository_name(name: str) -> None:
    """
    Raises:
        ValueError: it is not `user/name`.
    """
    try:
        validate_repo_id(name)
        complete = name.count("/") == 1
    except HFValidationError:
        complete = False
    if not complete:
        raise ValueError(f"--repo {name!r} is no name of a Hub repository: write user/name, letters, digits, - _ and .")


def upload(
    folder: Path,
    repository: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    silence: float = SILENCE,
    repo_type: str = "model",
) -> Published:
    """
    Commit a folder to a repository, which is created if it is not there, and see that all of it arrived.

    Args:
        folder: see `write_publishable_folder`; checked already.
        repository (`str`): `user/name`.
        private (`bool`, *optional*, defaults to `False`): create it private.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request instead of committing to `main`.
        message (`str`, *optional*): of the commit.
        token (`str`, *optional*): of the Hub; by default the one that `hf auth login` stored, or HF_TOKEN.
        revision (`str`, *optional*): the branch to commit to, `main` by default.
        silence (`float`, *optional*, defaults to 120): seconds without an answer until a request counts as failed.
        repo_type (`str`, *optional*, defaults to `"model"`): "model" or "dataset".

    Raises:
        ValueError: a file holds a secret; or `private` and the repository is public already.
        KeyboardInterrupt: it was stopped; the message says what the repository holds.
        OSError: no or a wrong token, no permission, a conflict, the connection, an answer that is none of a Hub's, or
            files that did not arrive; one line that says what to do.
    """
    check_repository_name(repository)
    refuse_secrets(folder, token)
    api = HfApi(token=token)
    try:
        with _client(silence):
            account = _patiently(lambda: api.whoami(token=token or True)["name"])
            _patiently(lambda: api.create_repo(repository, repo_type=repo_type, private=private or None, exist_ok=True))
            before = _patiently(lambda: api.repo_info(repository, repo_type=repo_type, revision=revision))
            if private and not before.private:
                raise _IsPublic
            present = {sibling.rfilename for sibling in before.siblings or []}
            operations: list[Any] = []

            def commit() -> Any:
                operations[:] = _operations(folder, present)
                title = message or "Publish with Poise"
                return api.create_commit(
                    repository, operations, commit_message=title, create_pr=create_pr, parent_commit=before.sha,
                    revision=revision, repo_type=repo_type,
                )  # fmt: skip

            # A second pull request would be a nuisance: only an answer that says "not now" is tried again.
            made = _patiently(commit, temporary=(429,) if create_pr else TEMPORARY)
            lacking = missing_files(operations, _patiently(lambda: _tree(api, repository, made.oid, repo_type)))
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"{str(stopped) or 'interrupted'} while {repository} was uploaded: it holds all of the commit or none of "
            f"it; {folder} is complete, and the same command goes on where it was"
        ) from None
    except _IsPublic:
        raise ValueError(
            f"--private: {repository} exists already and is public; nothing was uploaded. Make it private in its "
            "settings, or choose another name"
        ) from None
    except LocalTokenNotFoundError as error:
        raise OSError("no Hub token: run `hf auth login`, or set HF_TOKEN to a token with write permission") from error
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE is set: unset it to publish, or use --dry-run") from error
    except HfHubHTTPError as error:
        raise OSError(_said_clearly(error, repository, folder)) from error
    except HTTPError as error:
        raise OSError(_interrupted(error, folder)) from error
    except NOT_THE_PROTOCOL as error:
        raise OSError(
            f"the server gave an answer that is none of a Hub's ({type(error).__name__}): check HF_ENDPOINT and "
            f"proxies, see what {repository} holds, and run the same command again; {folder} is complete"
        ) from error
    if lacking:
        raise OSError(_incomplete(lacking, operations, repository, folder))
    url = made.pr_url if create_pr and made.pr_url else made.commit_url
    logger.info("%s published %s", account, url)
    return Published(url, changed=made.oid != before.sha)


class _IsPublic(Exception):
    """The repository is, and was to be private."""


@contextmanager
def _client(silence: float) -> Iterator[None]:
    """huggingface_hub's own HTTP client, with a limit on waiting, and with the token for the Hub's own host alone."""
    former, home = _http._GLOBAL_CLIENT_FACTORY, urlsplit(constants.ENDPOINT)

    def keep_the_token(request: Any) -> None:
        # The server names the addresses that large files are sent to and verified at: they may be anybody's.
        if (request.url.scheme, request.url.netloc.decode()) != (home.scheme, home.netloc.rpartition("@")[2]):
            request.headers.pop("authorization", None)

    def make() -> Any:
        client = former()
        client.timeout = silence
        client.event_hooks["request"] = [*client.event_hooks["request"], keep_the_token]
        return client

    set_client_factory(make)
    try:
        yield
    finally:
        set_client_factory(former)


def _operations(folder: Path, present: set[str]) -> list[Any]:
    """Add every file, delete what an earlier version left behind. Made anew for every attempt: they are used up."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = [name for name in sorted(present - set(files)) if _is_replaced(name)]
    return [*(CommitOperationAdd(name, path) for name, path in files.items()), *_deletions(stale)]


def _is_replaced(name: str) -> bool:
    # `*` of fnmatch goes over slashes; what lies in folders that are not named is left alone.
    return any(fnmatch.fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in REPLACED)


def _deletions(names: Sequence[str]) -> Iterator[CommitOperationDelete]:
    for name in names:
        try:
            deletion = CommitOperationDelete(name)
        except ValueError:  # `../x.py`
            continue
        if deletion.path_in_repo == name:  # the client would ask for `x.py` in place of `/x.py`, which is not there
            yield deletion


def _tree(api: HfApi, repository: str, revision: str, repo_type: str) -> list[Any]:
    try:
        return list(api.list_repo_tree(repository, recursive=True, revision=revision, repo_type=repo_type))
    except RevisionNotFoundError:  # a commit that the server said it made, and did not
        return []


def missing_files(operations: Sequence[Any], tree: Sequence[Any]) -> list[str]:
    """Which added files a repository's tree lacks, or holds with another size or content."""
    found = {entry.path: entry for entry in tree if getattr(entry, "blob_id", None)}
    return [
        operation.path_in_repo
        for operation in operations
        if isinstance(operation, CommitOperationAdd) and not _same(operation, found.get(operation.path_in_repo))
    ]


def _same(operation: CommitOperationAdd, entry: Any) -> bool:
    if entry is None or entry.size != operation.upload_info.size:
        return False
    if entry.lfs is not None:
        return entry.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        content = file.read()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _incomplete(lacking: Sequence[str], operations: Sequence[Any], repository: str, folder: Path) -> str:
    ignored = any(getattr(operation, "_should_ignore", False) for operation in operations)
    why = "its .gitignore leaves them out: take them off it" if ignored else "the server dropped or changed them"
    more = f" and {len(lacking) - MANY} more" if len(lacking) > MANY else ""
    return (
        f"{repository} is incomplete after the commit: {', '.join(lacking[:MANY])}{more} did not arrive ({why}). "
        f"{folder} is complete; run the same command again"
    )


def _patiently(call: Callable[[], Result], temporary: tuple[int, ...] = TEMPORARY) -> Result:
    """
    Call again after a temporary refusal, as long as the Hub asks for, or a while.

    Calling twice is safe: what is there already is not made again (a repository), and files that are there already make
    no commit.
    """
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except RuntimeError as error:  # how huggingface_hub wraps what went wrong with one of several files
            if isinstance(error.__cause__, NOT_THE_PROTOCOL):
                raise error.__cause__ from error
            if not isinstance(error.__cause__, HTTPError):
                raise
            if attempt == ATTEMPTS or not _is_temporary(error.__cause__, temporary):
                raise error.__cause__ from error
            cause = error.__cause__
        except HTTPError as error:
            if attempt == ATTEMPTS or not _is_temporary(error, temporary):
                raise
            cause = error
        pause = _retry_after(cause) or wait
        logger.warning("the Hub is not ready (%s); trying again in %g s", _short(cause), pause)
        time.sleep(min(pause, LONGEST_WAIT))
        wait *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_temporary(error: HTTPError, temporary: tuple[int, ...]) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in temporary
    return 500 in temporary  # the connection; whether the request was carried out is not known


def _retry_after(error: HTTPError) -> float | None:
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isdigit() else None


def _short(error: HTTPError) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return type(error).__name__


def _interrupted(error: HTTPError, folder: Path) -> str:
    return (
        f"the connection to the Hub broke ({_short(error)}). {folder} is complete; run the same command again: what "
        "has been sent is not sent twice"
    )


def _said_clearly(error: HfHubHTTPError, repository: str, folder: Path) -> str:
    status = error.response.status_code
    said = (error.server_message or "").lower()  # read for what it means, never repeated
    if re.search(r"storage|quota", said) and re.search(r"limit|exceed|full|quota", said) or status in (413, 507):
        return (
            f"the storage of {repository.partition('/')[0]} is full (status {status}): make room or buy some in the "
            f"settings of the account, and run the same command again. {folder} is complete"
        )
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not accept the token: run `hf auth login` again, or check HF_TOKEN"
    if status in (401, 404):
        return f"{repository} is not there, or the token may not see it: check the name and the token's permissions"
    if status == 403:
        return (
            f"the token may not write to {repository} (status 403): use a token with write permission there, or "
            "--create-pr"
        )
    if status in (409, 412):
        return f"{repository} was changed by somebody else meanwhile: look at it, and publish again"
    if status in TEMPORARY:
        return (
            f"the Hub refused {ATTEMPTS} times (status {status}). {folder} is complete; run the same command again "
            "later: what has been sent is not sent twice"
        )
    code = re.fullmatch(r"[A-Za-z]{1,40}", error.response.headers.get("X-Error-Code", ""))
    return f"the Hub refused with status {status}{f' ({code[0]})' if code else ''}: nothing was committed"
