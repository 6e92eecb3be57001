"""The HTTP interfaces of other servers than TGI over the same engine: vLLM, SGLang, llama.cpp, transformers.

Recorded from vLLM 0.32.0 (CPU), llama.cpp b1-7e4c0a9 and transformers 5.23.0 with
continuous batching, all with SmolLM2-135M; SGLang's is read from its 0.5.23
sources. The modules with a server's name have what is its own: routes (``vllm``),
what may be asked (``_requests``), the JSON of answers (``_wire``), pages about itself
(``_metrics``, ``_status``). The others are shared, in the order of a request:
``fastapi`` reads the body, ``prompts`` turns what it holds into tokens, ``asks`` says
what is wanted, ``script`` plans what a reply says and why it ends, ``answers`` hands
it to the service and keeps the account, ``form`` has what vLLM's and SGLang's answers
share, ``chunks`` frames tokens as events, ``logprobs`` and ``prometheus`` write the
log-probabilities and the metrics.
"""
