"""The application that each of several tokenizer workers serves (``--tokenizer-worker-num``).

SGLang's supervisor starts workers as fresh processes that import an application by its path, and
load no plugins. Ours is at that path instead (``SGLANG_HTTP_SERVER_APP_PATH``): it loads the
plugins, which hook what stamps requests, and puts the middleware before SGLang's routes, with the
settings that SGLang leaves in shared memory for its workers. All else is SGLang's.
"""

from sglang.srt.entrypoints.http_server import app
from sglang.srt.managers.multi_tokenizer_mixin import (
    get_main_process_id,
    read_from_shared_memory,
)

from sglang_flowprefill.adapter import releases
from sglang_flowprefill.adapter.http.hooks import put_middleware

__all__ = ["app"]

releases.startup().load_plugins()  # after the server's modules, which tell a worker apart
_, _server_args, _ = read_from_shared_memory(f"multi_tokenizer_args_{get_main_process_id()}")
put_middleware(app, _server_args)
