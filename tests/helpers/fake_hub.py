"""What stands in for the Hub in tests. No network."""

from types import SimpleNamespace


class Hub:
    """Takes the place of HfApi and remembers what it was asked for; `error` is raised instead of taking an upload."""

    def __init__(self):
        self.repos, self.sent, self.error = {}, [], None

    def create_repo(self, repo, private, exist_ok):
        self.repos[repo] = {"private": private, "exist_ok": exist_ok}

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        if self.error is not None:
            raise self.error
        self.sent.append((repo_id, sorted(allow_patterns)))
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")
