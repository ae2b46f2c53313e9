// What others may try: texts that want to be markup, and pages that want to send our forms.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after } from 'node:test';

import { context } from './support/browser.mjs';
import { eventually } from './support/program.mjs';
import { send } from './support/peer.mjs';
import { test } from './support/suite.mjs';
import { World, leave, logIn, shows, titled } from './support/world.mjs';

/** Texts that run a script where they are not escaped: in an element, an attribute, a title, a URL, a template. */
const TEXTS = [
    '<img src=x onerror=window.__pwned=1>',
    '"><script>window.__pwned=1</script>',
    "' autofocus onfocus=window.__pwned=1 x='",
    '</title></textarea></code><svg/onload=window.__pwned=1>',
    'javascript:window.__pwned=1',
    '{{ 7 * 7 }}{% raw %}${7*7}',
];

/** All of them at once, where there is room for it, and two short ones. */
const SOME = [TEXTS.join(' '), ...TEXTS.slice(0, 2)];

/** Asserts that a page has none of them as markup. */
async function harmless(page, path) {
    const found = await page.evaluate(() => {
        const handlers = [...document.querySelectorAll('*')].filter((one) => [...one.attributes].some(({ name }) => name.startsWith('on')));
        const scripts = [...document.querySelectorAll('script')].filter((one) => !one.src.includes('/assets/'));
        const links = [...document.querySelectorAll('[href], [action], [formaction], [src]')].filter((one) =>
            ['href', 'action', 'formaction', 'src'].some((name) => /^\s*(javascript|data):/i.test(one.getAttribute(name) ?? '')));
        const images = [...document.querySelectorAll('img, iframe, object, embed, svg[onload]')];
        return [...handlers, ...scripts, ...links, ...images].map((one) => one.outerHTML.slice(0, 200));
    });
    assert.deepEqual(found, [], path);
    page.clean();
}

test('no text of an operator becomes markup', async () => {
    const world = await World.start();
    const page = await world.operator('admin');
    page.expects(/status of 4\d\d/);
    // By the forms of the console, as an operator that attacks another one would.
    for (const text of SOME) {
        await page.open('/invites');
        await page.getByLabel('For whom').fill(text);
        await page.getByRole('button', { name: 'Make an invite' }).click();
        await page.getByRole('heading', { name: 'Your new invite' }).waitFor();
        await harmless(page, text);
        await page.open('/bans');
        await page.getByLabel('DID, address or invite').fill(`192.0.2.${SOME.indexOf(text) + 1}`);
        await page.getByLabel('Reason').fill(text);
        await page.getByRole('button', { name: 'Ban', exact: true }).click();
        await shows(page, 'The ban is in force.');
        await page.getByLabel('DID, address or invite').fill(text);
        await page.getByRole('button', { name: 'Ban', exact: true }).click();
        await page.getByRole('alert').waitFor();
        await harmless(page, text);
        await page.open('/tokens');
        // It has a bound, which the field has too.
        await page.getByLabel('Whose it is').fill(text.slice(0, 64));
        await page.getByRole('button', { name: 'Make a token' }).click();
        await page.getByRole('status').or(page.getByRole('alert')).filter({ visible: true }).first().waitFor();
        await page.open('/templates/new');
        await page.getByLabel('Name', { exact: true }).fill(text.slice(0, 64));
        for (const label of ['Fewest members', 'Time to answer']) await page.getByLabel(label).fill(text);
        await page.getByRole('button', { name: 'Preview' }).click();
        await page.getByRole('alert').waitFor();
        await harmless(page, text);
        assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), text.slice(0, 64));
        const { cohortId } = world.ctl('cohort', 'create', '--set', 'min-participants=2');
        await page.open(`/cohorts/${cohortId}`);
        await page.getByText('Cancel', { exact: true }).click();
        await page.getByLabel('Reason').fill(text);
        await page.getByRole('button', { name: 'Cancel the cohort' }).click();
        await page.locator(`#ended-list [data-row="${cohortId}"]`).waitFor();
        await harmless(page, text);
        await page.open(`/cohorts/${cohortId}`);
        await shows(page, text);
        await harmless(page, text);
    }
    for (const path of ['/', '/invites', '/bans', '/bans/192.0.2.1', '/tokens', '/audit', '/alarms', '/settings', '/cohorts']) {
        await page.open(path);
        for (const details of await page.locator('main details').all()) await details.evaluate((one) => (one.open = true));
        await harmless(page, path);
        if (['/invites', '/bans', '/audit'].includes(path)) await shows(page, TEXTS[0], { exact: false });
    }
    // Who logs in with such a name sees it as a name.
    for (const text of TEXTS.slice(0, 2)) {
        const named = await world.visitor();
        await named.open('/');
        await logIn(named, world.token('operator', text));
        await titled(named, 'Overview');
        await shows(named, text);
        await harmless(named, 'label');
        await leave(named);
    }
    await leave(page);
});

test('no text of a peer becomes markup', async () => {
    const world = await World.start();
    const { cohortId } = world.ctl('cohort', 'create', '--set', 'min-participants=2');
    const page = await world.operator('admin');
    const service = (await world.service.event('serving')).did;
    const peer = world.identity('mallory');
    for (const text of TEXTS) {
        const body = { cohortId, [text]: text, participantPk: text, communicationPk: text, reason: text, code: text };
        const type = 'https://btcr2.dev/aggregation/keygen/cohort_opt_in';
        const messages = [
            { type, version: text, body },
            { type, version: 1, body },
            { type, version: 1, body: { ...body, cohortId: text.replaceAll(' ', '/').slice(0, 64) } },
            { type: text, version: 1, body },
        ];
        for (const message of messages) {
            const [status] = await send(peer, world.url, service, message);
            assert.equal(status, 202);
        }
    }
    // All of them have come, also as the identifier of a cohort. What of them is shown is shown as text.
    const came = (text) => (event) => JSON.stringify([event.detail, event.cohortId]).includes(JSON.stringify(text).slice(1, -1));
    await world.service.event('message-rejected', came(TEXTS.at(-1)));
    for (const path of ['/', '/cohorts', `/cohorts/${cohortId}`, '/alarms', '/audit']) {
        await page.open(path);
        await harmless(page, path);
    }
    await leave(page);
});

test('no address of a page becomes markup', async () => {
    const world = await World.start();
    const page = await world.operator('admin');
    page.expects(/status of 4\d\d/);
    for (const text of SOME) {
        const part = encodeURIComponent(text);
        for (const path of [
            `/${part}`, `/cohorts/${part}`, `/standing/${part}`, `/templates/${part}`, `/templates/new?copy=${part}&kind=${part}`, `/bans/${part}`,
            `/bans?after=${part}`, `/audit?before=${part}`, `/invites?x=${part}#${part}`,
        ]) {
            await page.open(path);
            await page.locator('h1').waitFor();
            await harmless(page, path);
        }
    }
    await page.getByRole('button', { name: 'Log out' }).click();
    for (const next of [...TEXTS, 'https://evil.example/', '//evil.example', '/console/../evil']) {
        await page.open(`/login?next=${encodeURIComponent(next)}`);
        await harmless(page, next);
    }
    await logIn(page, page.token);
    await titled(page, 'Overview');
    assert.ok(page.url().startsWith(world.console), 'the login leads nowhere else');
    await leave(page);
});

/** A page of another origin: of the same host or another one. */
async function elsewhere(body, host = '127.0.0.1') {
    const server = createServer((request, response) => {
        response.setHeader('content-type', 'text/html; charset=utf-8');
        response.end(request.url === '/' ? body : '<!doctype html><title>empty</title>');
    });
    await new Promise((done) => server.listen(0, '127.0.0.1', done));
    after(() => server.close());
    return `http://${host}:${server.address().port}/`;
}

const field = (name, value) => `<input name="${name}" value="${value}">`;

test('pages of other origins send no form and read no page', async () => {
    const world = await World.start();
    const operator = await world.operator('admin');
    const csrf = await operator.locator('input[name="_csrf"]').first().inputValue();
    const before = world.ctl('audit').entries.length;
    const act = `${world.console}/do/PUT/bans/192.0.2.9`;
    const attacks = {
        'a form': `<form method="post" action="${act}">${field('reason', 'x')}</form>`,
        'a form with another token': `<form method="post" action="${act}">${field('_csrf', 'x'.repeat(csrf.length))}</form>`,
        // One that was stolen does not help a page of another origin.
        'a form with the right token': `<form method="post" action="${act}">${field('_csrf', csrf)}</form>`,
        'a form of another type': `<form method="post" enctype="text/plain" action="${act}">${field('_csrf', csrf)}</form>`,
        'a form of parts': `<form method="post" enctype="multipart/form-data" action="${act}">${field('_csrf', csrf)}</form>`,
        'a form that reads': `<form method="get" action="${act}">${field('_csrf', csrf)}</form>`,
        'a logout': `<form method="post" action="${world.console}/logout">${field('_csrf', csrf)}</form>`,
        // It would make its victim act in the attacker's name.
        'a login': `<form method="post" action="${world.console}/login">${field('token', world.token('viewer', 'mallory'))}</form>`,
    };
    const origins = ['127.0.0.1', 'localhost'];
    for (const [name, body] of Object.entries(attacks)) {
        for (const host of origins) {
            const page = await operator.context().newPage();
            await page.goto(await elsewhere(`<!doctype html><title>elsewhere</title>${body}`, host));
            const [answer] = await Promise.all([
                page.waitForResponse((one) => one.url().startsWith(world.console) && one.status() !== 303),
                page.evaluate(() => document.forms[0].submit()),
            ]);
            // The login is shown where the browser sent no cookie.
            const refused = answer.status() >= 400 || (await answer.text()).includes('name="token"');
            assert.ok(refused, `${name} of ${host}: ${answer.status()}`);
            await page.close();
        }
    }
    for (const host of origins) {
        const page = await operator.context().newPage();
        await page.goto(await elsewhere('<!doctype html><title>elsewhere</title>', host));
        const results = await page.evaluate(async ([console, control, act, csrf]) => {
            const attempt = async (url, options) => {
                try {
                    const answer = await fetch(url, { credentials: 'include', ...options });
                    return answer.type === 'opaque' ? 'opaque' : `${answer.status} ${await answer.text()}`;
                } catch {
                    return 'refused';
                }
            };
            const headers = { 'x-csrf-token': csrf, 'content-type': 'application/json' };
            const form = new URLSearchParams({ _csrf: csrf });
            return [
                await attempt(`${console}/tokens`),
                await attempt(`${control}/control/v1/whoami`),
                await attempt(`${control}/control/v1/bans/192.0.2.9`, { method: 'PUT', headers, body: '{}' }),
                await attempt(act, { method: 'POST', body: form }),
                await attempt(act, { method: 'POST', body: form, mode: 'no-cors' }),
                await attempt(`${console}/logout`, { method: 'POST', body: form, mode: 'no-cors' }),
            ];
        }, [world.console, world.control, act, csrf]);
        assert.ok(results.every((result) => ['refused', 'opaque'].includes(result)), JSON.stringify(results));
        // No frame, no script, no style, no image of ours.
        await page.setContent(`<iframe src="${world.console}/"></iframe>`);
        const frame = await eventually('the frame', () => page.frames()[1]);
        await frame.waitForLoadState().catch(() => {});
        assert.ok(!(await frame.content().catch(() => '')).includes('Overview'));
        await page.close();
    }
    assert.deepEqual(world.ctl('ban', 'list').bans, []);
    const audit = world.ctl('audit').entries.filter((entry) => entry.action !== 'token.create');
    assert.equal(audit.length, before - 1, JSON.stringify(audit));
    // The session is as it was.
    await operator.open('/settings');
    await titled(operator, 'Settings');
    await shows(operator, 'admin', { exact: true });
    await leave(operator);
});

test('a form without its token does nothing', async () => {
    const world = await World.start();
    const page = await world.operator('admin');
    page.expects(/status of 403/);
    await page.open('/bans');
    await page.locator('input[name="_csrf"]').evaluateAll((inputs) => inputs.forEach((input) => (input.value = 'forged')));
    await page.getByLabel('DID, address or invite').fill('192.0.2.9');
    await page.getByRole('button', { name: 'Ban', exact: true }).click();
    await titled(page, 'Not allowed');
    assert.deepEqual(world.ctl('ban', 'list').bans, []);
    await leave(page);
});

test('another host name does not reach the console', async () => {
    const world = await World.start();
    const { port } = new URL(world.origin);
    const inside = await context();
    // What a name that its owner points at this machine would send.
    const answer = await inside.request.get(`${world.console}/login`, { headers: { host: `evil.example:${port}` } });
    assert.equal(answer.status(), 421);
    await inside.close();
});
