"""Repositories of the Hugging Face hub, through its own client: which, at which commit, and what goes wrong.

The address is HF_ENDPOINT where that is set. The token is HF_TOKEN and no other; it is sent and never shown.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.storage.fetch import DownloadError

PREFIX = "hf:"
DEFAULT_ENDPOINT = "https://huggingface.co"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"[\w.-]+", re.ASCII)


class HubError(DownloadError):
    """The hub does not answer, or does not give or take what was asked; the message says why and what to do."""


@dataclass(frozen=True)
class HubReference:
    """`hf:<org>/<repo>[@revision]`, or `hf:` and a path that begins with /, ./, ../ or ~."""

    repo: str = ""
    revision: str | None = None
    folder: Path | None = None

    @property
    def commit(self) -> str | None:
        """The revision, if it is a whole commit, which never becomes another."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        if self.folder is not None:
            return str(self.folder)
        return f"{PREFIX}{self.repo}" + (f"@{self.revision}" if self.revision else "")


def parse_hub_reference(text: str) -> HubReference:
    """The reference in a text that begins with `hf:`.

    Raises:
        ValueError: naming the text and the rule.
    """
    rest = text.removeprefix(PREFIX)
    if re.match(r"(/|~|\.{1,2}(/|$))", rest):
        return HubReference(folder=Path(rest).expanduser().absolute())
    repo, at, revision = rest.partition("@")
    named = text.startswith(PREFIX) and _REPO.fullmatch(repo)
    if not named or repo.endswith(".git") or (at and not re.fullmatch(r"[\w./-]+", revision)):
        raise ValueError(
            f"{text!r} is no repository of the hub: write hf:ORG/REPO or hf:ORG/REPO@REVISION, and a folder as "
            "hf:./FOLDER"
        )
    return HubReference(repo, revision or None)


class Hub:
    """The hub at HF_ENDPOINT, asked with HF_TOKEN.

    Raises:
        ValueError: HF_ENDPOINT is no address, or HF_TOKEN no token.
    """

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        if not re.match(r"https?://", self.endpoint):
            raise ValueError(f"HF_ENDPOINT is {self.endpoint!r}; it begins with http:// or https://")
        self._token = os.environ.get("HF_TOKEN", "").strip()
        if self._token and not _TOKEN.fullmatch(self._token):
            raise ValueError("HF_TOKEN holds characters that no token has; set it to the token alone")

    @property
    def has_token(self) -> bool:
        """Whether HF_TOKEN is set."""
        return bool(self._token)

    def api(self) -> Any:
        """The client; `False` keeps it from a token that it stores elsewhere."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self._token or False)

    def resolve(self, reference: HubReference) -> tuple[str, list[str]]:
        """(commit, names of the files) of a repository.

        Raises:
            HubError: there is none, or the hub does not answer.
        """
        with self.asking(str(reference)):
            found = self.api().model_info(reference.repo, revision=reference.revision, timeout=30)
        commit = found.sha if isinstance(found.sha, str) and _COMMIT.fullmatch(found.sha) else None
        if commit is None:
            raise HubError(f"{self.endpoint} names no commit of {reference}")
        return commit, [file.rfilename for file in found.siblings or []]

    def fetch(self, repo: str, commit: str, names: Sequence[str], folder: Path) -> None:
        """Fetches files into `folder`; one that is there whole is not fetched again.

        Raises:
            HubError: naming the file.
        """
        for name in names:
            with self.asking(f"{PREFIX}{repo}, {name}"):
                self.api().hf_hub_download(repo, name, revision=commit, local_dir=folder)

    @contextlib.contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """What the client raises becomes one line, without its cause: that may hold headers, and so the token."""
        from huggingface_hub import errors
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )

        transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined] # of httpx or what follows it

        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        except errors.GatedRepoError:
            told = f"accept its conditions at {self.endpoint}, and set HF_TOKEN to your token"
            raise HubError(f"{what} is gated: {told}") from None
        except errors.RevisionNotFoundError:
            raise HubError(f"{what}: the repository has no such revision") from None
        except errors.RepositoryNotFoundError:
            token = "the token in HF_TOKEN may not see it" if self.has_token else "HF_TOKEN is not set"
            raise HubError(
                f"{what}: {self.endpoint} has no such repository, or it is private and {token}"
            ) from None
        except errors.LocalEntryNotFoundError as error:  # of a file, whatever the hub answered
            cause = error.__cause__
            told = (
                self._answer(cause)
                if isinstance(cause, errors.HfHubHTTPError)
                else self._silent(cause or error)
            )
            raise HubError(f"{what}: {told}") from None
        except errors.EntryNotFoundError:
            raise HubError(f"{what}: the repository has no such file") from None
        except errors.OfflineModeIsEnabled:
            raise HubError(f"{what} is not asked for: HF_HUB_OFFLINE is set; unset it") from None
        except errors.HfHubHTTPError as error:
            raise HubError(f"{what}: {self._answer(error)}") from None
        except (transport, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a disk that is full
            raise HubError(f"{what}: {self._silent(error)}") from None
        except (ValueError, RuntimeError) as error:  # of its own checks, and of a part of an upload
            cause = error.__cause__
            if isinstance(cause, errors.HfHubHTTPError):
                raise HubError(f"{what}: {self._hidden(error)} {self._answer(cause)}") from None
            raise ValueError(f"{what}: {self._hidden(error)}") from None
        finally:
            if shown:
                enable_progress_bars()

    def _silent(self, error: BaseException) -> str:
        return (
            f"{self.endpoint} does not answer ({self._hidden(error)}). Without network, bring the folder from another "
            "machine and name it with --source FOLDER"
        )

    def _answer(self, error: Any) -> str:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            told = "the token in HF_TOKEN may not" if self.has_token else "HF_TOKEN is not set"
            return f"{self.endpoint} forbids it ({status}): {told}"
        said = getattr(error, "server_message", None) or error
        return f"{self.endpoint} answered {status}: {self._hidden(said)}"

    def _hidden(self, said: object) -> str:
        """One line, without the token."""
        text = " ".join(str(said).split())[:300]
        return text.replace(self._token, "HF_TOKEN") if self._token else text
