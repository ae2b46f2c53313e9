// Who is admitted: bans, invites, the allow-list, and decisions by hand.

import assert from 'node:assert/strict';

import { test } from './support/suite.mjs';
import { World, leave, mark, shows } from './support/world.mjs';

/** A service that always has an open cohort of one member. */
async function open() {
    const world = await World.start();
    world.ctl('template', 'put', 'one', '--set', 'min-participants=1');
    world.ctl('template', 'advertise', 'one');
    return world;
}

const ok = async (member) => (await member.event('result')).ok;

test('a banned member is refused and admitted when the ban is lifted', async () => {
    const world = await open();
    const page = await world.operator('operator');
    await page.open('/bans');
    await page.getByLabel('DID, address or invite').fill(world.did('alice'));
    await page.getByLabel('For', { exact: true }).fill('7d');
    await page.getByLabel('Reason').fill('rude');
    await page.getByRole('button', { name: 'Ban', exact: true }).click();
    await shows(page, 'The ban is in force.');
    const row = page.locator(`[data-row="${world.did('alice')}"]`);
    await row.getByText('banned', { exact: true }).waitFor();
    assert.equal(await ok(world.join('alice')), false);
    await row.getByRole('link').click();
    await shows(page, 'rude');
    await page.getByRole('button', { name: 'Lift, and delete the record' }).click();
    await shows(page, 'No bans, and no recorded offences.');
    assert.equal(await ok(world.join('alice')), true);
    await leave(page);
});

test('an invite admits with the token of its link', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/invites');
    await page.getByRole('button', { name: 'Require invites' }).click();
    await shows(page, 'Only invited DIDs are admitted from now on.');
    assert.equal(await ok(world.join('alice')), false, 'without an invite');
    await page.getByLabel('For whom').fill('bob, by phone');
    await page.getByRole('button', { name: 'Make an invite' }).click();
    await page.getByRole('heading', { name: 'Your new invite' }).waitFor();
    const shown = page.locator('.wanted code');
    const link = new URL((await shown.first().textContent()).trim());
    assert.equal(link.origin, new URL(world.url).origin);
    assert.equal(link.search + link.pathname, '/', 'the token is in the fragment alone');
    const token = link.hash.replace('#invite=', '');
    assert.ok(token.length > 20 && !page.url().includes(token));
    assert.equal(await ok(world.join('bob', '--invite', token)), true);
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
    const [alice, bob] = [world.join('alice'), world.join('bob')];
    // They appear by themselves.
    const rows = page.locator('#waiting [data-row]');
    await rows.nth(1).waitFor();
    await page.stays();
    const of = (name) => rows.filter({ has: page.locator(`[title="${world.did(name)}"]`) });
    await of('bob').getByText('Refuse', { exact: true }).click();
    await of('bob').getByLabel('Reason').fill('not you');
    await of('bob').getByRole('button', { name: 'Refuse it' }).click();
    await shows(page, 'The candidate is refused.');
    await of('alice').getByRole('button', { name: 'Admit' }).click();
    await shows(page, 'No candidate waits.');
    assert.equal(await ok(alice), true);
    const refused = await bob.event('result');
    assert.equal(refused.ok, false);
    assert.match(refused.reason, /not you/);
    await leave(page);
});

test('listed members are admitted and others are not', async () => {
    const world = await open();
    const page = await world.operator('admin');
    await page.open('/settings');
    await page.getByRole('button', { name: 'Turn on: Only listed DIDs' }).click();
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
    await page.getByRole('button', { name: 'Turn off: Open new cohorts' }).click();
    await shows(page, '“Open new cohorts” is off now.');
    assert.equal(world.ctl('settings', 'show').settings.adverts, false);
    await page.open('/');
    await shows(page, 'No new cohorts are opened');
    await page.open('/settings');
    await page.getByRole('button', { name: 'As on the command line: Open new cohorts' }).click();
    await shows(page, '“Open new cohorts” is as on the command line.');
    assert.deepEqual(world.ctl('settings', 'show').changed, {});
    await page.getByLabel('Most cohorts at once').fill('12');
    await page.getByRole('button', { name: 'Change: most cohorts at once' }).click();
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
    await page.locator('#list').getByText('bob').waitFor();
    assert.ok(!(await page.content()).includes(token));
    await leave(page);
});
