"""`dl-techniques serve`: where it listens, who may ask, and what it does not serve."""

import pytest
import uvicorn


@pytest.fixture
def served(command, monkeypatch, chat, caplog):
    """Run the command without listening: arguments -> (app, uvicorn's options, log)."""

    def call(*arguments):
        calls = []
        monkeypatch.setattr(uvicorn, "run", lambda app, **options: calls.append((app, options)))
        monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: chat)
        code, _, err = command("serve", "runs/shapes", *arguments)
        assert code == 0, err
        ((app, options),) = calls
        app.state.engine.close()
        app.state.uploads.close()
        return app, options, caplog.text

    return call


def test_it_listens_on_this_machine_alone(served):
    app, options, log = served()
    assert (options["host"], options["port"]) == ("127.0.0.1", 8000)
    assert options["http"] == "h11"  # Which bounds headers.
    assert app.state.settings.allowed_hosts == ("localhost", "127.0.0.1", "::1")
    assert app.state.settings.model_name == "shapes"
    assert "Everybody" not in log


def test_an_open_server_is_warned_of(served):
    app, options, log = served("--host", "0.0.0.0", "--port", "9000")
    assert (options["host"], options["port"]) == ("0.0.0.0", 9000)
    assert app.state.settings.allowed_hosts == ()
    assert "Everybody who reaches 0.0.0.0 may ask" in log


def test_keys_and_names(served, monkeypatch):
    arguments = ["--api-key", "a", "--api-key", "b", "--allowed-host", "chat.example"]
    app, _, log = served("--host", "0.0.0.0", "--name", "mine", *arguments)
    settings = app.state.settings
    assert settings.model_name == "mine" and settings.api_keys == ("a", "b")
    assert settings.allowed_hosts == ("chat.example", "localhost", "127.0.0.1", "::1")
    assert "Everybody" not in log
    monkeypatch.setenv("DL_TECHNIQUES_API_KEY", "one two")
    assert served()[0].state.settings.api_keys == ("one", "two")


def test_what_is_not_served(command, monkeypatch, chat):
    monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: object())
    code, _, err = command("serve", "folder")
    assert code == 1 and "folder is a object, which answers no questions" in err
    monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: chat)
    with monkeypatch.context() as patch:
        patch.setattr(chat, "processor", None)
        for name in ("serve", "chat"):
            code, _, err = command(name, "folder")
            assert code == 1 and "folder has no tokenizer" in err
