"""The HTTP interfaces of other servers than TGI over the same engine: vLLM, SGLang, llama.cpp, transformers.

Recorded from vLLM 0.32.0 (CPU), llama.cpp b1-7e4c0a9 and transformers 5.23.0 with
continuous batching, all with SmolLM2-135M; SGLang's is read from its 0.5.23
sources. ``script`` plans what a reply says and when, ``chunks`` frames it as
events, ``asks`` and ``answers`` are between both and the service, ``tally`` and
``prometheus`` make the metrics pages; the modules with a server's name have the rest.
"""
