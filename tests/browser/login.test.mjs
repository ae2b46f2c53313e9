// Who may in, how long, and what happens to who may not.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';

import { test } from './support/suite.mjs';
import { World, leave, logIn, shows, titled } from './support/world.mjs';

/** Waits until the page is that of the login. */
const asked = (page) => page.getByRole('button', { name: 'Log in' }).waitFor();

test('a token opens a session and logging out ends it', async () => {
    const world = await World.start();
    const page = await world.visitor();
    // Where one wanted to go is where one is afterwards.
    await page.open('/settings');
    await asked(page);
    await logIn(page, world.token('operator'));
    await titled(page, 'Settings');
    await shows(page, 'operator', { exact: true });
    const [cookie] = await page.context().cookies();
    assert.deepEqual([cookie.httpOnly, cookie.sameSite, page.url().includes(cookie.value)], [true, 'Strict', false]);
    assert.equal(await page.evaluate(() => document.cookie), '', 'no script reads the cookie');
    await page.getByRole('button', { name: 'Log out' }).click();
    await asked(page);
    // Neither the way back nor the old cookie shows anything.
    await page.goBack();
    await asked(page);
    await page.context().addCookies([cookie]);
    await page.open('/settings');
    await asked(page);
    await leave(page);
});

test('a wrong token is slowed down and never locks its owner out', async () => {
    const world = await World.start();
    const token = world.token();
    const wrong = `${token.slice(0, -6)}aaaaaa`;
    const page = await world.visitor();
    page.expects(/status of 4(01|29)/);
    await page.open('/login');
    let waits = 0;
    for (let attempt = 0; attempt < 6; attempt++) {
        await page.getByLabel('Token', { exact: true }).fill(wrong);
        const [answer] = await Promise.all([
            page.waitForResponse((one) => one.request().method() === 'POST'),
            page.getByRole('button', { name: 'Log in' }).click(),
        ]);
        assert.ok([401, 429].includes(answer.status()), `${answer.status()}`);
        if (answer.status() === 429) {
            waits += 1;
            assert.ok(Number(answer.headers()['retry-after']) >= 1);
        }
        await page.getByRole('alert').waitFor();
        assert.equal(await page.getByLabel('Token', { exact: true }).inputValue(), '', 'what was typed is not sent back');
        assert.ok(!(await page.content()).includes(wrong));
    }
    assert.ok(waits > 0, 'guesses are slowed down');
    // The owner is not, from the same address.
    await logIn(page, token);
    await titled(page, 'Overview');
    await leave(page);
});

test('a session ends when it is idle', async () => {
    const world = await World.start({ args: ['--console-idle', '3s'] });
    const page = await world.operator();
    page.expects(/status of 401/);
    // What follows the events by itself does not count as use: the page goes to the login.
    await asked(page);
    await logIn(page, page.token);
    await titled(page, 'Overview');
    await leave(page);
});

test('a form that is sent after the session has ended is not lost without a word', async () => {
    const world = await World.start();
    const page = await world.operator();
    await page.open('/bans');
    page.expects(/status of 401/);
    await page.context().clearCookies();
    await page.getByLabel('DID, address or invite').fill('192.0.2.1');
    await page.getByRole('button', { name: 'Ban', exact: true }).click();
    await shows(page, /session has ended/);
    assert.deepEqual(world.ctl('ban', 'list').bans, []);
    await logIn(page, page.token);
    await titled(page, 'Bans');
    await leave(page);
});

test('a revoked token is out at once and its open page too', async () => {
    const world = await World.start();
    const admin = await world.operator('admin');
    const other = await world.operator('operator');
    other.expects(/status of 401/);
    await admin.open('/tokens');
    const row = admin.locator(`[data-row="${World.id(other.token)}"]`);
    await row.getByText('Revoke', { exact: false }).first().click();
    await row.getByRole('button', { name: 'Revoke it' }).click();
    await shows(admin, 'The token is revoked.');
    await row.getByText('revoked', { exact: true }).waitFor();
    await asked(other);
    await logIn(other, other.token);
    await other.getByRole('alert').waitFor();
    await leave(admin, other);
});

test('each role sees and may do what is its own', async () => {
    const world = await World.start();
    world.ctl('template', 'put', 'weekly', '--set', 'min-participants=3');
    const viewer = await world.operator('viewer');
    viewer.expects(/status of 403/);
    for (const path of ['/', '/templates', '/templates/weekly', '/cohorts', '/bans', '/invites', '/admissions', '/settings']) {
        await viewer.open(path);
        const forms = await viewer.locator('main form').count();
        assert.equal(forms, 0, `${path} shows a viewer nothing to change`);
    }
    for (const path of ['/tokens', '/audit']) {
        await viewer.open(path);
        await titled(viewer, 'Not allowed');
    }
    assert.equal(await viewer.getByRole('link', { name: 'Tokens' }).count(), 0);
    const operator = await world.operator('operator');
    operator.expects(/status of 403/);
    await operator.open('/templates/weekly');
    await operator.getByRole('button', { name: 'Advertise', exact: true }).click();
    await shows(operator, 'The terms are advertised: a cohort is open.');
    await operator.open('/tokens');
    await titled(operator, 'Not allowed');
    await leave(viewer, operator);
});

/** The code of an authenticator (RFC 6238) at a step of 30 seconds. */
function code(uri, step) {
    const letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';
    const bits = [...new URL(uri).searchParams.get('secret')].map((letter) => letters.indexOf(letter).toString(2).padStart(5, '0')).join('');
    const key = Buffer.from(bits.match(/.{8}/g).map((byte) => parseInt(byte, 2)));
    const counter = Buffer.alloc(8);
    counter.writeBigUInt64BE(BigInt(step));
    const digest = createHmac('sha1', key).update(counter).digest();
    return String((digest.readUInt32BE(digest[19] & 15) & 0x7fffffff) % 1_000_000).padStart(6, '0');
}

test('a token with codes asks for one at each login', async () => {
    const world = await World.start();
    const admin = await world.operator('admin');
    await admin.open('/tokens');
    await admin.getByLabel('Whose it is').fill('phone');
    await admin.getByLabel('Ask for a code at each login').check();
    await admin.getByRole('button', { name: 'Make a token' }).click();
    await admin.getByRole('img', { name: /QR/ }).waitFor();
    const [token, uri] = await admin.locator('.wanted code').allTextContents();
    const page = await world.visitor();
    page.expects(/status of 4(01|29)/);
    await page.open('/login');
    const step = Math.floor(Date.now() / 30_000);
    const right = code(uri.trim(), step);
    for (const given of ['', right === '000000' ? '111111' : '000000']) {
        await page.getByLabel('Code', { exact: true }).fill(given);
        await logIn(page, token.trim());
        await page.getByRole('alert').waitFor();
    }
    await page.getByLabel('Code', { exact: true }).fill(right);
    await logIn(page, token.trim());
    await titled(page, 'Overview');
    await leave(admin, page);
});
