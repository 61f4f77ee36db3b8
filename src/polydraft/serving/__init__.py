"""An HTTP server in OpenAI's protocol over a batch that admits texts between its cycles; extra `serve`."""
