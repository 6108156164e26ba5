"""One commit from a folder through the real client: what arrives, what is refused, what happens when it breaks off."""

import pytest
from loopback_hub import OTHER_TOKEN, READ_TOKEN, WRITE_TOKEN

from poise.hub_cards.publishing import upload as upload_module
from poise.hub_cards.publishing.upload import upload

COMMIT = r"/commit/"


@pytest.fixture
def folder(tmp_path):
    """Stands in for a publishable folder: a card, a configuration, two weight files."""
    folder = tmp_path / "published"
    (folder / "plots").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model\n")
    (folder / "config.json").write_text('{"model_type": "poise"}')
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}" + b"a" * 50_000)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}" + b"b" * 50_000)
    (folder / "plots" / "loss.png").write_bytes(b"image")
    return folder


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Retries of ours and of the client follow at once, unless the Hub says how long to wait."""
    monkeypatch.setattr(upload_module, "FIRST_WAIT", 0.01)
    sleep = upload_module.time.sleep
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: sleep(min(seconds, 0.05)))


def test_everything_arrives_in_one_commit(online, folder):
    published = upload(folder, "user/name")
    repository = online.repositories["user/name"]
    assert {path: file.content for path, file in repository.main.items()} == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert repository.main["model-00001-of-00002.safetensors"].is_lfs and not repository.main["config.json"].is_lfs
    assert len(repository.commits) == 2 and not repository.private
    assert published.url.startswith(online.endpoint) and published.changed


def test_publishing_again_commits_what_changed_and_removes_stale_shards(online, folder):
    upload(folder, "user/name")
    assert not upload(folder, "user/name").changed
    assert len(online.repositories["user/name"].commits) == 2
    (folder / "config.json").write_text('{"model_type": "poise", "router_type": "gate"}')
    (folder / "model-00002-of-00002.safetensors").unlink()
    upload(folder, "user/name", message="Smaller")
    repository = online.repositories["user/name"]
    latest = repository.resolve("main")
    assert (latest.title, len(repository.commits)) == ("Smaller", 3)
    assert "model-00002-of-00002.safetensors" not in latest.files and b"gate" in latest.files["config.json"].content
    assert online.count("PUT", "/lfs/") == 3


def test_files_of_the_owner_stay(online, folder):
    upload(folder, "user/name")
    repository = online.repositories["user/name"]
    files = {**repository.main, "NOTES.md": repository.main["README.md"]}
    repository.commit("main", "notes", files, repository.references["main"])
    (folder / "config.json").write_text("{}")
    upload(folder, "user/name")
    assert "NOTES.md" in repository.main


def test_private_and_pull_request(online, folder, monkeypatch):
    upload(folder, "user/name", private=True)
    repository = online.repositories["user/name"]
    assert repository.private
    (folder / "config.json").write_text("{}")
    published = upload(folder, "user/name", create_pr=True)
    assert published.url.endswith("/discussions/1")
    assert repository.resolve("refs/pr/1").files["config.json"].content == b"{}"
    assert repository.main["config.json"].content != b"{}"

    repository.private = False
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    (folder / "config.json").write_text('{"by": "somebody else"}')
    assert upload(folder, "user/name", create_pr=True).url.endswith("/discussions/2")


def test_private_is_refused_for_a_public_repository(online, folder):
    upload(folder, "user/name")
    (folder / "config.json").write_text("secret")
    with pytest.raises(ValueError, match="exists already and is public"):
        upload(folder, "user/name", private=True)
    assert online.repositories["user/name"].main["config.json"].content != b"secret"


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        (None, "user/name", "no Hub token: run `hf auth login`"),
        ("hf_unknownunknownunknownunknown", "user/name", "does not accept the token"),
        (READ_TOKEN, "user/name", "may not write to user/name"),
        (OTHER_TOKEN, "user/name", "may not write to user/name"),
    ],
)
def test_tokens_that_do_not_do(online, folder, monkeypatch, token, repository, message):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OSError, match=message) as caught:
        upload(folder, repository)
    assert "\n" not in str(caught.value) and (token is None or token not in str(caught.value))
    assert online.count("PUT", "/lfs/") == 0 and online.count("POST", COMMIT) == 0


@pytest.mark.parametrize("name", ["name", "user/name/more", "user/na me", "", "../up/name"])
def test_bad_repository_names(folder, name):
    with pytest.raises(ValueError, match="is no name of a Hub repository"):
        upload(folder, name)


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        (COMMIT, "POST", 500),
        (COMMIT, "POST", 503),
        (r"/api/repos/create", "POST", 500),
        (r"/preupload/", "POST", 502),
        (r"/lfs/[0-9a-f]", "PUT", 500),
        (r"objects/batch", "POST", 503),
        (r"/lfs/verify", "POST", 500),
    ],
)
def test_a_server_that_stumbles_once_is_asked_again(online, folder, path, method, status):
    online.fail(method, path, status)
    upload(folder, "user/name")
    repository = online.repositories["user/name"]
    assert len(repository.commits) == 2 and len(repository.main) == 5


def test_waits_as_long_as_the_hub_asks(online, folder, monkeypatch):
    pauses = []
    monkeypatch.setattr(upload_module.time, "sleep", pauses.append)
    online.fail("POST", COMMIT, 429, headers={"Retry-After": "7"})
    upload(folder, "user/name")
    assert 7 in pauses and len(online.repositories["user/name"].commits) == 2


def test_a_server_that_stays_down_leaves_everything_as_it_was(online, folder):
    online.fail("POST", COMMIT, 500, times=100)
    with pytest.raises(OSError, match=r"refused 5 times \(status 500\).*run the same command again"):
        upload(folder, "user/name")
    assert online.repositories["user/name"].main == {}
    sent = online.count("PUT", "/lfs/")
    online.faults.clear()
    upload(folder, "user/name")
    assert online.count("PUT", "/lfs/") == sent == 3 and len(online.repositories["user/name"].main) == 5


def test_a_cut_connection_is_made_again(online, folder):
    online.cut_upload()
    upload(folder, "user/name")
    assert len(online.repositories["user/name"].main) == 5


def test_an_interrupted_upload_goes_on_where_it_was(online, folder, monkeypatch):
    weights = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    import hashlib

    last = hashlib.sha256(weights[-1].read_bytes()).hexdigest()
    online.cut_upload(path=last, times=100)
    with pytest.raises(OSError, match="connection to the Hub broke.*not sent twice"):
        upload(folder, "user/name")
    assert online.repositories["user/name"].main == {} and last not in online.lfs_objects
    kept = set(online.lfs_objects)
    assert kept
    online.faults.clear()
    online.requests.clear()
    upload(folder, "user/name")
    sent = {path.removeprefix("/lfs/") for method, path in online.requests if method == "PUT"}
    assert last in sent and not sent & kept
    assert len(online.repositories["user/name"].main) == 5


def test_a_lost_answer_makes_no_second_commit(online, folder, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    real, calls = HfApi.create_commit, []

    def loses_the_first_answer(self, *args, **kwargs):
        result = real(self, *args, **kwargs)
        calls.append(result)
        if len(calls) == 1:
            raise HTTPError("connection lost")
        return result

    monkeypatch.setattr(HfApi, "create_commit", loses_the_first_answer)
    upload(folder, "user/name")
    assert len(calls) == 2 and len(online.repositories["user/name"].commits) == 2


def test_a_commit_in_between_is_a_conflict(online, folder):
    online.fail("POST", COMMIT, 409, message="A commit has happened since")
    with pytest.raises(OSError, match="changed by somebody else meanwhile"):
        upload(folder, "user/name")


def test_a_pull_request_is_not_opened_twice(online, folder):
    upload(folder, "user/name")
    (folder / "config.json").write_text("{}")
    online.fail("POST", COMMIT, 500)
    with pytest.raises(OSError, match="status 500"):
        upload(folder, "user/name", create_pr=True)
    assert online.repositories["user/name"].pull_requests == []


@pytest.mark.parametrize("name", ["recipe.yaml", "plots/loss.png", "model-00001-of-00002.safetensors"])
def test_a_token_in_a_file_stops_the_upload(online, folder, name):
    header = b'{"__metadata__":{"token":"%s"}}' % WRITE_TOKEN.encode()
    content = len(header).to_bytes(8, "little") + header if name.endswith("safetensors") else header
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} holds a secret") as caught:
        upload(folder, "user/name")
    assert WRITE_TOKEN not in str(caught.value) and online.requests == []


def test_offline_is_said(folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        upload(folder, "user/name")


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
@pytest.mark.parametrize("fault", ["dropped", "ignored", "changed"])
def test_files_that_did_not_arrive_are_named(online, folder, fault, name):
    getattr(online, fault).add(name)
    with pytest.raises(OSError, match=f"is incomplete after the commit: {name} did not arrive") as caught:
        upload(folder, "user/name")
    assert ("gitignore" in str(caught.value)) == (fault == "ignored") and "\n" not in str(caught.value)
    getattr(online, fault).clear()
    upload(folder, "user/name")
    assert len(online.repositories["user/name"].main) == 5


def test_a_server_that_commits_nothing(online, folder):
    online.commits_nothing = True
    with pytest.raises(OSError, match="incomplete.*README.md, config.json.* did not arrive"):
        upload(folder, "user/name")
    online.answer("POST", COMMIT, b'{"commitUrl": "http://127.0.0.1/user/name/commit/0", "commitOid": "0"}')
    with pytest.raises(OSError, match="incomplete.*README.md, config.json.* did not arrive"):
        upload(folder, "user/name")


def test_many_missing_files_fit_into_a_line(online, folder):
    names = [f"plots/{number}.png" for number in range(30)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    online.dropped.update(names)
    with pytest.raises(OSError, match="and 25 more did not arrive") as caught:
        upload(folder, "user/name", create_pr=False)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("raw", [b"<html>busy</html>", b"{}", b"null"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/whoami-v2"),
        ("POST", "/api/repos/create"),
        ("GET", r"/api/models/user/name$"),
        ("POST", "/preupload/"),
        ("POST", "objects/batch"),
        ("POST", COMMIT),
        ("GET", "/tree/"),
    ],
)
def test_answers_that_are_none_of_a_hub(online, folder, method, path, raw):
    online.answer(method, path, raw)
    try:
        upload(folder, "user/name")
    except OSError as error:
        assert "\n" not in str(error) and ("none of a Hub" in str(error) or "is incomplete" in str(error)), error
    else:  # what the client can do without
        assert len(online.repositories["user/name"].main) == 5 and (path, raw) != (COMMIT, b"{}")


def test_a_server_that_falls_silent(online, folder):
    online.answer("GET", "/api/whoami-v2", b"{}", silent=3.0)
    with pytest.raises(OSError, match="connection to the Hub broke .ReadTimeout.*run the same command again"):
        upload(folder, "user/name", silence=0.1)
    assert online.count("GET", "/api/whoami-v2") == 5
    online.faults.clear()
    upload(folder, "user/name")
    assert len(online.repositories["user/name"].main) == 5


def test_full_storage_is_no_matter_of_the_token(online, folder):
    for message in ("Private repository storage limit reached", "You have exceeded your storage quota"):
        online.fail("POST", "objects/batch", 403, message=message)
        with pytest.raises(OSError, match="the storage of user is full") as caught:
            upload(folder, "user/name")
        assert "token" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 418, 422, 500])
def test_what_a_server_echoes_is_not_repeated(online, folder, status, monkeypatch):
    monkeypatch.setattr(upload_module, "ATTEMPTS", 1)
    online.fail("POST", COMMIT, status, message=f"bad header: Bearer {WRITE_TOKEN}", times=100)
    with pytest.raises(OSError) as caught:
        upload(folder, "user/name")
    assert WRITE_TOKEN not in str(caught.value) and "Bearer" not in str(caught.value)


def test_the_token_stays_at_the_hub(online, folder):
    from loopback_hub import LoopbackHub

    with LoopbackHub() as elsewhere:
        elsewhere.answer("POST", "/verify")
        online.verifies_at = f"{elsewhere.endpoint}/verify"
        upload(folder, "user/name")
        assert elsewhere.count("POST", "/verify") == 3 and elsewhere.authorized == []
    assert any(COMMIT in path for path in online.authorized)
    online.verifies_at = None
    (folder / "plots" / "loss.png").write_bytes(b"another")
    upload(folder, "user/name")
    assert "/lfs/verify" in online.authorized


@pytest.mark.parametrize("name", ["../x.py", "./model.safetensors", "plots/../../x", "/x.py"])
def test_a_hostile_name_in_the_repository_blocks_nothing(online, folder, name):
    from loopback_hub import File

    upload(folder, "user/name")
    repository = online.repositories["user/name"]
    files = {**repository.main, name: File(b"x", False)}
    repository.commit("main", "hostile", files, repository.references["main"])
    (folder / "config.json").write_text("{}")
    upload(folder, "user/name")
    assert repository.main["config.json"].content == b"{}"
