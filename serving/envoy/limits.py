"""The limits that Envoy keeps and no flag sets; those of flags are fields of `serving.envoy.options.EnvoyOptions`.

docs/gateway.md has a table of both. Which route keeps which is said in `serving.envoy.routes`, and for the console in
`serving.envoy.console`.
"""

# callers' connections
HANDSHAKE_SECONDS = 10.0
HEADERS_SECONDS = 10.0
CALLS_OF_A_CONNECTION = 128
HIGHEST_RATE = 1_000_000  # of what a flag may say: beyond it Envoy's buckets are no limit any more

# headers
MOST_HEADERS = 64
ADDED_HEADERS = 2048  # bytes of the gateway's limit that are left for what Envoy adds

# bytes in flight
BUFFER_BYTES = 1 << 20
STREAM_WINDOW, CONNECTION_WINDOW = 1 << 20, 4 << 20
# From the gateway all callers' answers come on a few connections. Whose answers nobody reads may hold back his own
# stream and never the connection: so its window is a thousand times as large.
ANSWER_WINDOW, ANSWERS_WINDOW = 256 << 10, 256 << 20
ANSWER_BYTES = 32 << 20  # of a JSON answer with all its pictures

# what stands behind
CONNECT_SECONDS = 2.0
PROBE_SECONDS = 2.0
MARGIN_SECONDS = 1.0  # that the gateway has to say itself that time is over
MOST_AT_ONCE = 16  # requests in work, as a multiple of --concurrency, however fast answers come
KEPT_SECONDS = 3.0  # an idle connection to a console, whose server closes those that are idle for five

# memory, of all callers together
HEAP_BYTES = 1 << 30
HEAP_SHARES = {"shrink_heap": 0.8, "disable_http_keepalive": 0.9, "stop_accepting_requests": 0.95}  # by Envoy's action
