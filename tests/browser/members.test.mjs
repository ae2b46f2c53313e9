// Who is admitted: bans, invites, the allow-list, and decisions by hand.

import assert from 'node:assert/strict';

import { context, watched } from './support/browser.mjs';
import { test } from './support/suite.mjs';
import { World, leave, mark, shows } from './support/world.mjs';

/** A service that always has an open cohort of one member. */
async function open(...args) {
    const world = await World.start({ args });
    world.ctl('template', 'put', 'one', '--set', 'min-participants=1');
    world.ctl('template', 'advertise', 'one');
    return world;
}

const ok = async (member) => (await member.event('result')).ok;

test('a banned member is refused and one whose ban is lifted is not', async () => {
    const world = await open();
    const page = await world.operator('operator');
    await page.open('/bans');
    // Two, since the refusal of the first may still be in its inbox afterwards.
    for (const name of ['alice', 'bob']) {
        await page.getByLabel('DID, address or invite').fill(world.did(name));
        await page.getByLabel('For', { exact: true }).fill('7d');
        await page.getByLabel('Reason').fill(`rude ${name}`);
        await page.getByRole('button', { name: 'Ban', exact: true }).click();
        await shows(page, 'The ban is in force.');
        await page.locator(`[data-row="${world.did(name)}"]`).getByText('banned', { exact: true }).waitFor();
    }
    assert.equal(await ok(world.join('alice')), false);
    await page.locator(`[data-row="${world.did('bob')}"]`).getByRole('link').click();
    await shows(page, 'rude bob');
    await page.getByRole('button', { name: 'Lift, and delete the record' }).click();
    await shows(page, 'The ban is lifted, and the record is deleted.');
    assert.equal(await page.locator('#list [data-row]').count(), 1);
    assert.equal(await ok(world.join('bob')), true);
    await leave(page);
});

test('an invite admits with the token of its link', async () => {
    const world = await open('--directory', '--public-page');
    const page = await world.operator('admin');
    await page.open('/invites');
    await page.getByRole('button', { name: 'Require invites' }).click();
    await shows(page, 'Only invited DIDs are admitted from now on.');
    assert.equal(await ok(world.join('alice')), false, 'without an invite');
    await page.getByLabel('For whom').fill('bob, by phone');
    await page.getByRole('button', { name: 'Make an invite' }).click();
    await page.getByRole('heading', { name: 'Your new invite' }).waitFor();
    const shown = (await page.locator('.wanted code').allTextContents()).map((text) => text.trim());
    const link = shown.find((text) => URL.canParse(text));
    const token = new URL(link).hash.replace('#invite=', '');
    assert.deepEqual([new URL(link).origin, new URL(link).search], [new URL(world.url).origin, ''], 'it is in the fragment alone');
    assert.equal(shown.at(-1), `btcr2-aggregation join --service ${world.url} --identity FILE --state DIR --invite ${token}`);
    assert.ok(token.length > 20 && !page.url().includes(token));
    // The member opens it, and copies the command.
    const inside = await context();
    const member = await watched(inside, new URL(world.url).origin);
    const requests = [];
    member.on('request', (request) => requests.push(request.url().split('#')[0]));
    await member.goto(link);
    const command = member.locator('code[data-join]').filter({ hasText: token }).first();
    await command.waitFor();
    assert.ok(!requests.some((url) => url.includes(token)), 'no server has seen it');
    const given = (await command.textContent()).match(/--invite (\S+)/)[1];
    await leave(member);
    assert.equal(await ok(world.join('bob', '--invite', given)), true);
    // The list follows, and the token is shown once.
    const row = page.locator('#list [data-row]');
    await row.getByText('used up').waitFor();
    await page.reload();
    await row.getByText('bob, by phone').waitFor();
    assert.ok(!(await page.content()).includes(token));
    assert.ok(!JSON.stringify(world.ctl('audit')).includes(token));
    await leave(page);
});

test('a revoked invite admits no one', async () => {
    const world = await open();
    world.ctl('settings', 'set', 'invites=true');
    const { token } = world.ctl('invite', 'new', '--label', 'lost');
    const page = await world.operator('operator');
    await page.open('/invites');
    await page.getByRole('button', { name: 'Revoke lost' }).click();
    await shows(page, 'The invite is revoked.', { exact: false });
    assert.equal(await ok(world.join('alice', '--invite', token)), false);
    await leave(page);
});

test('candidates are admitted and refused by hand', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/admissions');
    await page.getByRole('button', { name: 'Decide by hand' }).click();
    await shows(page, 'You decide on each candidate');
    await mark(page);
    const rows = page.locator('#waiting [data-row]');
    const of = (name) => rows.filter({ has: page.locator(`[title="${world.did(name)}"]`) });
    // Each appears by itself.
    const bob = world.join('bob');
    await of('bob').waitFor();
    await page.stays();
    await of('bob').getByText('Refuse', { exact: true }).click();
    await of('bob').getByLabel('Reason').fill('not you');
    await of('bob').getByRole('button', { name: 'Refuse it' }).click();
    await shows(page, 'The candidate is refused.');
    const refused = await bob.event('result');
    assert.equal(refused.ok, false);
    assert.match(refused.reason, /not you/);
    await mark(page);
    const alice = world.join('alice');
    await of('alice').waitFor();
    await page.stays();
    await of('alice').getByRole('button', { name: 'Admit' }).click();
    await shows(page, 'No candidate waits.');
    assert.equal(await ok(alice), true);
    await leave(page);
});

test('listed members are admitted and others are not', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/settings');
    await page.getByRole('button', { name: 'Turn on Only listed DIDs' }).click();
    await shows(page, '“Only listed DIDs” is on now.');
    await page.open('/allow-list');
    page.expects(/status of 422/);
    await page.getByLabel('DID', { exact: true }).fill('did:example:alice');
    await page.getByRole('button', { name: 'List it' }).click();
    await page.getByRole('alert').getByText('did:btcr2').waitFor();
    assert.equal(await page.getByLabel('DID', { exact: true }).inputValue(), 'did:example:alice');
    await page.getByLabel('DID', { exact: true }).fill(world.did('alice'));
    await page.getByRole('button', { name: 'List it' }).click();
    await shows(page, 'The DID is listed.');
    assert.equal(await ok(world.join('alice')), true);
    assert.equal(await ok(world.join('bob')), false);
    await page.getByRole('button', { name: /^Remove/ }).click();
    await shows(page, 'The DID is not listed any more.');
    await leave(page);
});

test('settings change and return to the command line', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/settings');
    await page.getByRole('button', { name: 'Turn off Open new cohorts' }).click();
    await shows(page, '“Open new cohorts” is off now.');
    assert.equal(world.ctl('settings', 'show').settings.adverts, false);
    await page.open('/');
    await shows(page, 'No new cohorts are opened');
    await page.open('/settings');
    await page.getByRole('button', { name: 'As on the command line Open new cohorts' }).click();
    await shows(page, '“Open new cohorts” is as on the command line.');
    assert.deepEqual(world.ctl('settings', 'show').changed, {});
    await page.getByLabel('Most cohorts at once').fill('12');
    await page.getByRole('button', { name: 'Change most cohorts at once' }).click();
    await shows(page, 'The number is changed.');
    assert.equal(world.ctl('settings', 'show').settings['max-live-cohorts'], 12);
    // Who did it is in the audit log.
    await page.open('/audit');
    await page.locator('[data-row]').first().getByText('settings.change').waitFor();
    await page.locator('[data-row]').first().getByText('admin', { exact: true }).first().waitFor();
    await leave(page);
});

test('a token is made shown once and works', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/tokens');
    await page.getByLabel('Whose it is').fill('bob');
    await page.getByLabel('Role').selectOption('viewer');
    await page.getByLabel('Valid for').fill('90d');
    await page.getByRole('button', { name: 'Make a token' }).click();
    await page.getByRole('heading', { name: 'The token of bob' }).waitFor();
    const token = (await page.locator('.wanted code').textContent()).trim();
    const answer = await fetch(`${world.control}/control/v1/whoami`, { headers: { authorization: `Bearer ${token}` } });
    const { label, role } = await answer.json();
    assert.deepEqual([label, role], ['bob', 'viewer']);
    await page.reload();
    await page.locator('#list').getByRole('rowheader', { name: 'bob' }).waitFor();
    assert.ok(!(await page.content()).includes(token));
    await leave(page);
});
