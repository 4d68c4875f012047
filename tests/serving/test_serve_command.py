"""`dl-techniques serve`: where it listens, who may ask, and what it does not serve."""

import socket

import pytest

from dl_techniques.serving.listening import Server


@pytest.fixture
def served(command, monkeypatch, chat, caplog):
    """Run the command without serving: arguments -> (app, where it would listen, log)."""

    caplog.set_level("INFO", "dl_techniques")

    def call(*arguments):
        calls = []

        def run(server, sockets):
            calls.append((server.config, sockets[0].getsockname()))
            sockets[0].close()

        monkeypatch.setattr(Server, "run", run)
        monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: chat)
        code, _, err = command("serve", *arguments)
        assert code == 0, err
        ((config, place),) = calls
        config.app.state.engine.close()
        config.app.state.uploads.close()
        assert config.http == "h11"  # Which bounds headers.
        return config.app, place, caplog.text

    return call


def test_it_listens_on_this_machine_alone(served):
    app, (host, port), log = served("runs/shapes/", "--port", "0")
    assert host == "127.0.0.1" and f"shapes at http://127.0.0.1:{port}, soon" in log
    assert app.state.settings.allowed_hosts == ("localhost", "127.0.0.1", "::1")
    assert app.state.settings.model_name == "shapes"
    assert "Everybody" not in log


def test_an_open_server_is_warned_of(served):
    app, (host, port), log = served("shapes", "--host", "0.0.0.0", "--port", "0")
    assert host == "0.0.0.0" and port
    assert app.state.settings.allowed_hosts == ()
    assert "Everybody who reaches 0.0.0.0 may ask" in log


def test_keys_and_names(served, monkeypatch):
    anywhere = ("--host", "0.0.0.0", "--port", "0")
    arguments = ["--api-key", "a", "--api-key", "b", "--allowed-host", "chat.example"]
    app, _, log = served("shapes", *anywhere, "--name", "mine", *arguments)
    settings = app.state.settings
    assert settings.model_name == "mine" and settings.api_keys == ("a", "b")
    assert settings.allowed_hosts == ("chat.example", "localhost", "127.0.0.1", "::1")
    assert "Everybody" not in log
    monkeypatch.setenv("DL_TECHNIQUES_API_KEY", "one key of words")
    assert served("shapes", *anywhere)[0].state.settings.api_keys == ("one key of words",)


@pytest.mark.parametrize(
    ("source", "name"), [("hf://owner/model", "model"), (".", "here"), ("a/../b", "b")]
)
def test_the_name_of_a_model(served, monkeypatch, tmp_path, source, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert served(source, "--port", "0")[0].state.settings.model_name == name


def test_where_it_cannot_listen_nothing_is_loaded(command, monkeypatch):
    monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: 1 / 0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = command("serve", "folder", "--port", str(port))
        assert code == 1 and f"Cannot listen at 127.0.0.1, port {port}: Address already" in err
    code, _, err = command("serve", "folder", "--host", "no-such-host.invalid")
    assert code == 1 and "Cannot listen at no-such-host.invalid, port 8000" in err


def test_what_is_not_served(command, monkeypatch, chat):
    monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: object())
    code, _, err = command("serve", "folder", "--port", "0")
    assert code == 1 and "folder is a object, which answers no questions" in err
    monkeypatch.setattr("dl_techniques.cli_loading.load_source", lambda source, **o: chat)
    with monkeypatch.context() as patch:
        patch.setattr(chat, "processor", None)
        for name in (["serve", "folder", "--port", "0"], ["chat", "folder"]):
            code, _, err = command(*name)
            assert code == 1 and "folder has no tokenizer" in err
    code, _, err = command("serve", "folder", "--port", "0", "--timeout", "nan")
    assert code == 1 and "timeout=nan > 0" in err
