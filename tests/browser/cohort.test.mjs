// Cohorts from the console: what an operator does, and what the page shows of the members meanwhile, without being loaded again.

import assert from 'node:assert/strict';

import { accessibility } from './support/browser.mjs';
import { Node } from './support/node.mjs';
import { test, testOnNode } from './support/suite.mjs';
import { World, leave, mark, shows, titled } from './support/world.mjs';

/** Creates terms, and advertises them: the page is that of the terms. */
async function advertised(page, name, fields) {
    await page.open('/');
    await page.getByRole('link', { name: /terms/i }).filter({ hasText: /^(New|Create) terms$/ }).first().click();
    await titled(page, 'New terms');
    await page.getByLabel('Name', { exact: true }).fill(name);
    for (const [label, value] of Object.entries(fields)) await page.getByLabel(label).fill(value);
    await page.getByRole('button', { name: 'Save' }).click();
    await titled(page, name);
    await page.getByRole('button', { name: 'Advertise', exact: true }).click();
    await shows(page, 'The terms are advertised: a cohort is open.');
}

/** Opens the page of the only cohort. */
async function onlyCohort(page) {
    await page.getByRole('link', { name: 'Cohorts', exact: false }).first().click();
    await titled(page, 'Cohorts');
    await page.locator('#list [data-row] a').first().click();
    await page.getByRole('heading', { name: /^Cohort/, level: 1 }).waitFor();
    return page.url().split('/').pop();
}

testOnNode('a fresh operator gets to a confirmed cohort with one deposit', async () => {
    const node = await Node.start();
    const world = await World.start({ node });
    const page = await world.operator('operator');
    await shows(page, 'There are no terms yet');
    await advertised(page, 'weekly', { 'Fewest members': '3', 'Most members': '3' });
    const cohort = await onlyCohort(page);
    await mark(page);
    await shows(page, '0 of 3 members that are needed');

    const first = world.join('alice');
    await shows(page, '1 of 3 members that are needed');
    await page.locator(`#members [data-row="${world.did('alice')}"]`).getByText('admitted', { exact: true }).waitFor();
    const others = [world.join('bob'), world.join('carol', '--decline')];

    // The members are ready, and it asks for a coin: what it shows is what is paid.
    await page.getByRole('heading', { name: 'Deposit wanted' }).waitFor();
    const deposit = page.locator('#deposit');
    const satoshis = Number(await deposit.locator('[data-amount]').getAttribute('data-amount'));
    const address = (await deposit.locator('code').first().textContent()).trim();
    const uri = (await deposit.locator('code').nth(1).textContent()).trim();
    assert.equal(await deposit.locator('.amount').textContent(), `${(satoshis / 1e8).toFixed(8)} BTC`);
    assert.match(address, /^bcrt1p/);
    assert.equal(uri, `bitcoin:${address}?amount=${(satoshis / 1e8).toFixed(8)}`);
    await deposit.getByRole('img', { name: /QR/ }).waitFor();
    assert.deepEqual(await accessibility(page), []);
    const payment = await node.pay(address, satoshis);
    await node.mine(1);

    await page.getByRole('heading', { name: 'Transaction', exact: true }).waitFor();
    await shows(page, 'in the mempool', { exact: true });
    await page.getByRole('heading', { name: 'Deposit wanted' }).waitFor({ state: 'detached' });
    const txid = (await page.locator('#transaction code').first().textContent()).trim();
    assert.deepEqual(await node.rpc('getrawmempool'), [txid]);
    const { vin } = await node.rpc('getrawtransaction', txid, 1);
    assert.equal(vin[0].txid, payment, 'it spends the deposit');
    await node.mine(1);
    await shows(page, '1 of 3 confirmations');
    await node.mine(2);
    await page.locator('#state').getByText('confirmed', { exact: true }).waitFor();
    await page.locator('#timeline').getByText('Final: as deep as you asked for').waitFor();
    await page.stays();

    for (const member of [first, ...others]) assert.equal((await member.event('result')).ok, true);
    // It is over, and its page is still there.
    await page.reload();
    await page.locator('#transaction').getByText(txid).first().waitFor();
    await page.locator('#state').getByText('confirmed', { exact: true }).waitFor();
    assert.deepEqual(await accessibility(page), []);
    await page.open('/coins');
    await page.locator(`#over [data-row="${cohort}"]`).getByText('confirmed').waitFor();
    assert.deepEqual(await accessibility(page), []);
    await leave(page);
});

testOnNode('a transaction that is held back waits for its operator', async () => {
    const node = await Node.start();
    const world = await World.start({ node });
    const page = await world.operator('operator');
    await advertised(page, 'weekly', { 'Fewest members': '2', 'Most members': '2' });
    await onlyCohort(page);
    const members = [world.join('alice', '--decline'), world.join('bob', '--decline')];
    await page.getByRole('heading', { name: 'Deposit wanted' }).waitFor();
    await page.getByRole('button', { name: 'Hold it back when signed' }).click();
    await shows(page, 'The transaction is held back until you broadcast it.');
    const deposit = page.locator('#deposit');
    const satoshis = Number(await deposit.locator('[data-amount]').getAttribute('data-amount'));
    await node.pay((await deposit.locator('code').first().textContent()).trim(), satoshis);
    await node.mine(1);
    await page.locator('#transaction').getByText('held back', { exact: true }).waitFor();
    assert.deepEqual(await node.rpc('getrawmempool'), [], 'nothing is broadcast');
    await page.getByRole('button', { name: 'Broadcast it' }).click();
    await page.locator('#transaction').getByText('in the mempool', { exact: true }).waitFor();
    await node.mine(3);
    await page.locator('#state').getByText('confirmed', { exact: true }).waitFor();
    for (const member of members) assert.equal((await member.event('result')).ok, true);
    await leave(page);
});

test('a cohort is signed while another page follows it', async () => {
    const world = await World.start();
    world.ctl('template', 'put', 'small', '--set', 'min-participants=2', '--cohorts', '1');
    const page = await world.operator();
    await mark(page);
    world.ctl('template', 'advertise', 'small');
    const lanes = page.locator('#running');
    await lanes.getByRole('region', { name: 'Open' }).getByText('small').waitFor();
    const members = [world.join('alice'), world.join('bob')];
    await page.locator('#ended').getByText('signed', { exact: true }).waitFor();
    await lanes.getByText('small').waitFor({ state: 'detached' });
    await page.stays();
    for (const member of members) assert.equal((await member.event('result')).ok, true);
    await leave(page);
});

test('a cancelled cohort ends with the reason for its members', async () => {
    const world = await World.start();
    const page = await world.operator('operator');
    await advertised(page, 'weekly', { 'Fewest members': '2' });
    const cohort = await onlyCohort(page);
    const member = world.join('alice');
    await member.event('opt-in-accepted');
    await page.getByText('Cancel', { exact: true }).click();
    await page.getByLabel('Reason').fill('the wrong day');
    await page.getByRole('button', { name: 'Cancel the cohort' }).click();
    await shows(page, 'The cohort is cancelled, and its members are notified.');
    const result = await member.event('result');
    assert.equal(result.ok, false);
    assert.match(result.reason, /the wrong day/);
    const row = page.locator(`#ended-list [data-row="${cohort}"]`);
    await row.getByText('the wrong day').waitFor();
    await row.getByRole('link').first().click();
    await page.locator('#progress').getByText('the wrong day').waitFor();
    assert.ok(!(await world.ctl('cohort', 'list').cohorts).some((one) => one.cohortId === cohort));
    await leave(page);
});

test('a paused advert reaches no participant until it is resumed', async () => {
    const world = await World.start();
    const page = await world.operator('operator');
    const [id] = [world.ctl('cohort', 'create', '--set', 'min-participants=1', '--set', 'advert-repeat=1s').cohortId];
    await page.open(`/cohorts/${id}`);
    await page.getByRole('button', { name: 'Pause the advert' }).click();
    await shows(page, 'The advert is withdrawn.', { exact: false });
    await page.locator('#state').getByText('advert paused').waitFor();
    // A member that comes now sees another cohort only.
    const member = world.join('alice');
    const other = world.ctl('cohort', 'create', '--set', 'min-participants=1', '--set', 'advert-repeat=1s').cohortId;
    assert.equal((await member.event('cohort-joined')).cohortId, other);
    assert.equal((await member.event('result')).ok, true);
    await page.getByRole('button', { name: 'Advertise again' }).click();
    await shows(page, 'The cohort is advertised again.');
    const second = world.join('bob');
    assert.deepEqual([(await second.event('result')).ok, second.seen.at(-1).cohortId], [true, id]);
    await leave(page);
});

test('a cohort gets more time and is formed by hand', async () => {
    const world = await World.start();
    const page = await world.operator('operator');
    const { cohortId, deadline } = world.ctl('cohort', 'create', '--set', 'min-participants=1', '--set', 'max-participants=5', '--set', 'settle=1h');
    await page.open(`/cohorts/${cohortId}`);
    assert.ok(await page.getByRole('button', { name: 'Form it now' }).isDisabled(), 'there are too few members');
    await page.getByText('More time', { exact: true }).click();
    await page.getByLabel('Give this phase more time').fill('a while');
    await page.getByRole('button', { name: 'Extend' }).click();
    page.expects(/status of 422/);
    await page.getByRole('alert').getByText('by').waitFor();
    await page.getByText('More time', { exact: true }).click();
    assert.equal(await page.getByLabel('Give this phase more time').inputValue(), 'a while', 'what was typed is not lost');
    await page.getByLabel('Give this phase more time').fill('10m');
    await page.getByRole('button', { name: 'Extend' }).click();
    await shows(page, 'The phase has more time.');
    assert.equal(world.ctl('cohort', 'show', cohortId).deadline, deadline + 600_000);
    const member = world.join('alice');
    await shows(page, '1 of 1 members that are needed');
    await page.getByRole('button', { name: 'Form it now' }).click();
    assert.equal((await member.event('result')).ok, true);
    await leave(page);
});

test('terms are previewed with their problems before they are stored', async () => {
    const world = await World.start();
    const page = await world.operator('operator');
    await page.open('/templates/new');
    page.expects(/status of 422/);
    await page.getByLabel('Name', { exact: true }).fill('monthly');
    await page.getByLabel('Fewest members').fill('5');
    await page.getByLabel('Most members').fill('3');
    await page.getByLabel('Time to answer').fill('soon');
    await page.getByRole('button', { name: 'Preview' }).click();
    await page.getByRole('alert').waitFor();
    const field = page.getByLabel('Time to answer');
    assert.equal(await field.getAttribute('aria-invalid'), 'true');
    assert.equal(await field.inputValue(), 'soon');
    assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), 'monthly');
    await field.fill('30m');
    await page.getByRole('button', { name: 'Preview' }).click();
    await page.getByRole('alert').getByText('maxParticipants').waitFor();
    await page.getByLabel('Most members').fill('8');
    await page.getByRole('button', { name: 'Preview' }).click();
    const preview = page.locator('#preview');
    await preview.getByText('5 to 8 members').waitFor();
    await preview.getByText('30m', { exact: true }).waitFor();
    assert.deepEqual(world.ctl('template', 'list').templates, [], 'a preview stores nothing');
    await page.getByRole('button', { name: 'Save' }).click();
    await titled(page, 'monthly');
    await shows(page, 'draft', { exact: true });
    assert.deepEqual(world.ctl('cohort', 'list').cohorts, [], 'a draft advertises nothing');
    await page.getByRole('link', { name: 'Change' }).click();
    await titled(page, 'Change “monthly”');
    assert.equal(await page.getByLabel('Most members').inputValue(), '8');
    await page.getByLabel('Most members').fill('9');
    await page.getByRole('button', { name: 'Save' }).click();
    await shows(page, '5 to 9 members');
    await page.getByText('Remove', { exact: true }).click();
    await page.getByRole('button', { name: 'Remove these terms' }).click();
    await shows(page, 'The terms are removed.');
    await leave(page);
});

testOnNode('a fee is bumped from the page of its cohort', async () => {
    const node = await Node.start();
    const world = await World.start({ node });
    const { cohortId } = world.ctl('cohort', 'create', '--set', 'min-participants=2');
    const members = [world.join('alice'), world.join('bob', '--decline')];
    const page = await world.operator('operator');
    await page.open(`/cohorts/${cohortId}`);
    const wanted = await world.service.event('funding-wanted');
    await node.pay(wanted.beaconAddress, 60_000);
    await node.mine(1);
    await page.getByRole('heading', { name: 'Transaction', exact: true }).waitFor();
    page.expects(/status of 4(09|22)/);
    await page.getByText('Bump the fee', { exact: true }).click();
    await page.getByLabel('New fee rate').fill('0.1');
    await page.getByRole('button', { name: 'Bump it' }).click();
    await page.getByRole('alert').waitFor();
    await page.getByText('Bump the fee', { exact: true }).click();
    await page.getByLabel('New fee rate').fill('12.5');
    await page.getByRole('button', { name: 'Bump it' }).click();
    await shows(page, 'The fee is bumped', { exact: false });
    await page.getByText('Child that pays for it').waitFor();
    assert.equal((await node.rpc('getrawmempool')).length, 2);
    await node.mine(3);
    await page.locator('#state').getByText('confirmed', { exact: true }).waitFor();
    for (const member of members) assert.equal((await member.event('result')).ok, true);
    await leave(page);
});
