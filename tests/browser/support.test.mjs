// The tests' own means: what a page must never do is noticed.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';

import { accessibility, context, overflow, watched } from './support/browser.mjs';
import { eventually } from './support/program.mjs';
import { test } from './support/suite.mjs';

const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'";

test('what a page must never do is noticed', async () => {
    const bad = {
        'a script from a text': ['<p><img src=x onerror="window.__pwned=1"></p>', /__pwned/],
        'an inline script under the policy': ['<script>1</script>', /CSP|Content Security Policy/i, POLICY],
        'an inline style under the policy': ['<p style="color: red">x</p>', /CSP|Content Security Policy/i, POLICY],
        'a dialog': ['<script>alert("x")</script>', /dialog/],
        'an exception': ['<script>none.of.it</script>', /exception/],
        'a request to others': ['<img src="http://127.0.0.1:9/x.png" alt="">', /request: http:\/\/127.0.0.1:9/],
    };
    const server = createServer((request, response) => {
        const [body, , policy] = Object.values(bad)[Number(request.url.slice(1))] ?? [''];
        response.setHeader('content-type', 'text/html');
        if (policy) response.setHeader('content-security-policy', policy);
        response.end(`<!doctype html><title>x</title>${body}`);
    });
    await new Promise((done) => server.listen(0, '127.0.0.1', done));
    const origin = `http://127.0.0.1:${server.address().port}`;
    const inside = await context();
    for (const [index, [name, [, pattern]]] of Object.entries(bad).entries()) {
        const page = await watched(inside, origin);
        await page.goto(`${origin}/${index}`);
        await eventually(name, () => {
            try {
                page.clean();
            } catch (error) {
                return pattern.test(error.message);
            }
            return false;
        });
        await page.close();
    }
    await inside.close();
    server.close();
});

test('pages that some cannot read or use are noticed', async () => {
    const inside = await context({ viewport: { width: 360, height: 700 } });
    const page = await watched(inside);
    await page.setContent('<html lang="en"><title>x</title><main><h1>x</h1><p style="color: #aaa; width: 500px">too pale, and too wide</p></main>');
    assert.match((await accessibility(page)).join(), /color-contrast/);
    assert.ok((await overflow(page)) > 0);
    await inside.close();
});
